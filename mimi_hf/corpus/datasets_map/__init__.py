"""Callables for `map` of `datasets`."""
