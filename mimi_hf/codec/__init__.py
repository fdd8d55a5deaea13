"""What computes: layers, tiles and streams; torch alone, but for two names of transformers."""
