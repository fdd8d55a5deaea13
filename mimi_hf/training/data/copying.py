"""One recording as training needs it: mono, at one rate; or why it cannot be used.

Letters for shapes: C channels, n samples of a block.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import soxr

from mimi_hf.audio import AudioBlocks, mix_channels
from mimi_hf.corpus.sources import Example, resolve_audio

# A recording that is nowhere above this is silent: -60 dBFS.
SILENCE = 1e-3
# Floating-point files may pass full scale, but above this the samples are not audio in [-1, 1].
OUT_OF_RANGE = 8.0
# Three samples in a row at this level in one channel count as clipped.
CLIPPED = 0.999
# Recordings below this many seconds count as short.
SHORT = 1.0
_BLOCK = 30.0


class LeftOutError(Exception):
    """A recording cannot be used.

    reason: what it is counted as in the report.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class Copied:
    """A recording that was copied.

    samples: how many were written.
    traits: which of `resampled`, `stereo`, `clipped` and `short` it is.
    """

    samples: int
    traits: list[str]


def copy_recording(
    example: Example, sampling_rate: float, min_seconds: float, write: Callable[[np.ndarray], object]
) -> Copied:
    """Pass the audio of an example to `write`, block by block.

    Args:
        example: the recording.
        sampling_rate: of the blocks that are written.
        min_seconds: shorter recordings are refused.
        write: called with np.ndarray, shape = (n,), float32, not limited to [-1, 1].

    Raises:
        LeftOutError: the recording cannot be used; drop what `write` got.
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
        for block in _resampled(map(level.measure, blocks), blocks.sampling_rate, sampling_rate):
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
    """Measures the samples of a recording before they are resampled, and mixes them."""

    def __init__(self) -> None:
        self.low, self.high, self.clipped = np.inf, -np.inf, False

    @property
    def swing(self) -> float:
        """Half the distance of the highest and the lowest sample: 0 for a constant, which is silent, too."""
        return max(0.0, float(self.high - self.low) / 2)

    def measure(self, block: np.ndarray) -> np.ndarray:
        """Mix a block, shape = (C, n), to shape (n,), and note what it is like."""
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


def _resampled(blocks: Iterable[np.ndarray], from_rate: float, to_rate: float) -> Iterator[np.ndarray]:
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)
