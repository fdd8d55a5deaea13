"""The former place of [`mimi_hf.inference`]. It goes in version 0.3."""

import warnings

from mimi_hf import inference


def __getattr__(name: str) -> object:
    if name not in inference.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("mimi_hf.compression is mimi_hf.inference now, and goes in version 0.3.", DeprecationWarning, 2)
    return getattr(inference, name)
