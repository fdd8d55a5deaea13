"""Resample and mix audio, as numpy arrays. Letters for shapes: C channels, N samples."""

import math
import numbers
from typing import Any

import numpy as np


def resample(audio: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Change the sampling rate with soxr (high quality).

    Args:
        audio: (..., N), floating point; the last axis is time.
        from_rate, to_rate: samples per second, positive.

    Returns:
        Audio (..., N * to_rate / from_rate), rounded; float64 where `audio` is, else float32. `audio` itself where
        both rates are equal.

    Raises:
        ValueError, TypeError: for a rate that is no positive number, or audio that is not floating point.
    """
    import soxr

    from_rate, to_rate = check_rate(from_rate, "from_rate"), check_rate(to_rate, "to_rate")
    audio = np.asarray(audio)
    if from_rate == to_rate:
        return audio
    if audio.dtype.kind != "f":
        raise TypeError(f"Audio to resample must be floating point, not {audio.dtype}. Convert it first.")
    if audio.dtype != np.float64:
        audio = audio.astype(np.float32)
    rows = np.ascontiguousarray(audio).reshape(math.prod(audio.shape[:-1]), audio.shape[-1])
    columns = soxr.resample(rows.T, from_rate, to_rate, quality="HQ")  # (N, rows) in and out
    return np.ascontiguousarray(columns.T).reshape(*audio.shape[:-1], len(columns))


def mix_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Mix to mono, or double mono to stereo.

    Args:
        audio: (C, N).
        channels: how many are wanted: C itself; 1, which is the mean of all; or 2 where C is 1.

    Returns:
        Audio (channels, N).

    Raises:
        ValueError: for other numbers of channels, as there is no one way to mix them.
    """
    present = audio.shape[0]
    if channels == present:
        return audio
    if channels == 1 and present > 1:
        return audio.mean(axis=0, keepdims=True)
    if channels == 2 and present == 1:
        return np.repeat(audio, 2, axis=0)
    raise ValueError(
        f"{present} channels cannot be mixed to {channels!r}: known are all to 1 (the mean) and 1 to 2 (doubled)."
        " Mix the audio yourself, or select channels."
    )


def check_rate(rate: Any, name: str = "sampling_rate") -> float:
    """Return a sampling rate as a plain int, or as a float where it is not whole.

    Args:
        rate: samples per second: a number, or a scalar of numpy or torch.
        name: of the argument, for messages.

    Raises:
        TypeError: the rate is no number.
        ValueError: the rate is not finite, or less than 1.
    """
    value = rate.item() if hasattr(rate, "item") and getattr(rate, "ndim", None) == 0 else rate
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}={rate!r} must be a number of samples per second, for example 24000.")
    number = float(value)
    if not 1 <= number < math.inf:
        raise ValueError(f"{name}={rate!r} must be positive: at least 1 sample per second. Give it in Hz, like 24000.")
    return int(number) if number.is_integer() else number
