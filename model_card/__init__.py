"""The model card of a converted checkpoint, and what fills it in."""

import importlib

__all__ = ["fill_card"]


def __getattr__(name):
    if name in __all__:
        return getattr(importlib.import_module(".card", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
