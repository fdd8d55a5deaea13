"""Shorter pauses, so that every second that a model learns from holds speech."""

from itertools import pairwise

import numpy as np

FRAME_SECONDS = 0.02
RANGE_DB = 40  # below the loudest frame a frame is silent: breath and room, in recordings made in a studio


def shorten_silence(audio: np.ndarray, rate: int, longest: float = 0.3, ends: float = 0.1) -> np.ndarray:
    """Cut pauses to `longest` seconds and the silence at both ends to `ends`; levels stay as they are.

    audio: (N,) at `rate` Hz, floats from -1 to 1 or integers. Returns (M,), M <= N; empty where nothing sounds.
    """
    size = max(1, round(FRAME_SECONDS * rate))
    frames = -(-len(audio) // size)
    scale = np.iinfo(audio.dtype).max if np.issubdtype(audio.dtype, np.integer) else 1
    padded = np.pad(audio / scale, (0, frames * size - len(audio)))
    level = np.sqrt(np.square(padded.reshape(frames, size)).mean(axis=1))
    loudest = level.max(initial=0.0)
    if loudest < 1e-4:
        return audio[:0]
    loud = np.flatnonzero(level > loudest * 10 ** (-RANGE_DB / 20))
    keep = np.zeros(frames, dtype=bool)
    margin, half = round(ends / FRAME_SECONDS), round(longest / 2 / FRAME_SECONDS)
    keep[max(0, loud[0] - margin) : loud[-1] + 1 + margin] = True
    for before, after in pairwise(loud):
        keep[before + 1 + half : max(before + 1 + half, after - half)] = False
    return audio[np.repeat(keep, size)[: len(audio)]]
