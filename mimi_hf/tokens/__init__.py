"""Codes as ids of a language model, and back."""
