"""The jobs: audio to codes, codes to audio, each cut into shards."""
