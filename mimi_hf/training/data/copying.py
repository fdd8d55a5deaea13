"""One recording as training needs it: mono, at one rate, in order; or why it is of no use.

Letters for shapes: C channels, n samples of a block.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soxr

from mimi_hf.audio import AudioBlocks, mix_channels
from mimi_hf.corpus.sources import Example, resolve_audio

# Nothing above this is silence: -60 dBFS.
SILENCE = 1e-3
# Floating-point files may pass full scale, but samples above this are no audio in [-1, 1].
OUT_OF_RANGE = 8.0
# Three samples in a row at this level, in one channel: cut off by a converter or an editor.
CLIPPED = 0.999
# Recordings below this many seconds count as short.
SHORT = 1.0
_BLOCK = 30.0


class LeftOutError(Exception):
    """A recording is of no use. `reason` is what it is counted as."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass
class Copied:
    """What became of a recording: its number of samples, and what it is counted as, besides."""

    samples: int
    traits: list[str]


def copy_recording(
    example: Example, sampling_rate: int, min_seconds: float, write: Callable[[np.ndarray], object]
) -> Copied:
    """Give the audio of an example to `write`, block by block: float32 (n,), not limited to [-1, 1].

    Raises:
        LeftOutError: it is of no use; forget what was given to `write`.
        OSError, ValueError, TypeError: it cannot be read, or written.
    """
    source = resolve_audio(example)
    if not (os.path.getsize(source) if isinstance(source, str) else len(source)):
        raise LeftOutError("empty", "The file has no bytes.")
    with AudioBlocks(source, seconds=_BLOCK, start=example.start, duration=example.duration) as blocks:
        if blocks.num_samples == 0:
            raise LeftOutError("empty", "There are no samples.")
        level = _Level()
        samples = 0
        for block in _resampled(map(level.watch, blocks), blocks.sampling_rate, sampling_rate):
            samples += len(block)
            write(block)
        resampled, stereo = blocks.sampling_rate != sampling_rate, blocks.channels > 1
    if samples < min_seconds * sampling_rate:
        raise LeftOutError("too_short", f"It lasts {samples / sampling_rate:.3f} s, less than {min_seconds} s.")
    if level.swing <= SILENCE:
        raise LeftOutError("silent", f"No sample is above {level.swing:.1e}.")
    facts = {"resampled": resampled, "stereo": stereo, "clipped": level.clipped}
    facts["short"] = samples < SHORT * sampling_rate
    return Copied(samples, [name for name, holds in facts.items() if holds])


class _Level:
    """Watches the samples of a recording before they are resampled, and mixes them."""

    def __init__(self):
        self.low, self.high, self.clipped = np.inf, -np.inf, False

    @property
    def swing(self) -> float:
        """Half of what lies between the highest and the lowest sample: a constant is silence, too."""
        return max(0.0, float(self.high - self.low) / 2)

    def watch(self, block: np.ndarray) -> np.ndarray:
        """(C, n) -> (n,)"""
        if not np.isfinite(block).all():
            raise LeftOutError("not_finite", "Its samples hold NaN or infinity.")
        peak = np.abs(block).max()
        if peak > OUT_OF_RANGE:
            raise LeftOutError("out_of_range", f"A sample is {peak:g}, where full scale is 1: scaled as integers?")
        if peak >= CLIPPED and not self.clipped:
            loud = np.abs(block) >= CLIPPED
            self.clipped = bool((loud[:, 2:] & loud[:, 1:-1] & loud[:, :-2]).any())
        mono = mix_channels(block, 1)[0]
        self.low, self.high = min(self.low, mono.min()), max(self.high, mono.max())
        return mono


def _resampled(blocks, from_rate: float, to_rate: float):
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)
