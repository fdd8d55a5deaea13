"""Tokenizing whole data sets."""
