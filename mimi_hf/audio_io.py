"""The former place of [`mimi_hf.audio`]. It goes in version 0.3."""

import warnings

from mimi_hf import audio


def __getattr__(name: str) -> object:
    if name not in audio.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("mimi_hf.audio_io is mimi_hf.audio now, and goes in version 0.3.", DeprecationWarning, 2)
    return getattr(audio, name)
