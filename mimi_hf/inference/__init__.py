"""Recordings through a model, one way for all."""
