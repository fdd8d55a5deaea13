"""Names of columns and files in a corpus that a job has written."""

# Columns of a corpus of codes.
ID, CODES, SAMPLES = "id", "audio_codes", "audio_num_samples"

# Files: what the corpus is made of and with; the sums over all shards.
MANIFEST, TOTALS = "manifest.json", "totals.json"
