"""Corpora as jobs of shards."""
