"""Reading recordings ahead of the model: threads decode and resample while it computes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mimi_hf.audio import AudioBlocks

from .sources import Example, resolve_audio
from .sources.base import is_damage

# Recordings that are longer than this, in seconds, are never held whole: they go through the model as a stream.
LONG = 300.0
# What can go wrong with one recording, and is no mistake of the program. An OSError may also be a network that is down:
# `check_damage` tells.
UNREADABLE = (OSError, ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, EOFError)


@dataclass
class Recording:
    """An example with its audio.

    audio: np.ndarray of shape (C, N), float32; `None` where it is long, and where it could not be read.
    reason: why it could not be read.
    """

    example: Example
    audio: np.ndarray | None = None
    reason: str | None = None

    @property
    def is_long(self) -> bool:
        """Whether its audio is still to be read, block by block."""
        return self.audio is None and self.reason is None


def open_blocks(example: Example, sampling_rate: int, channels: int, seconds: float) -> AudioBlocks:
    """The audio of an example in a file, block by block, at a rate and with a number of channels.

    Raises:
        OSError, ValueError, TypeError: as [`AudioBlocks`].
    """
    return AudioBlocks(resolve_audio(example), sampling_rate, channels, seconds, example.start, example.duration)


def check_finite(block: np.ndarray) -> np.ndarray:
    """`block`, unless it holds NaN or infinity, which raise ValueError."""
    if not np.isfinite(block).all():
        raise ValueError("its samples hold NaN or infinity. Repair it, or leave it out.")
    return block


def read_recording(example: Example, sampling_rate: int, channels: int) -> Recording:
    """Read one example; whatever is wrong with it becomes its `reason`."""
    try:
        with open_blocks(example, sampling_rate, channels, seconds=LONG) as blocks:
            if blocks.duration is not None and blocks.duration > LONG:
                return Recording(example)
            pieces, held = [np.empty((channels, 0), np.float32)], 0
            for block in blocks:
                pieces.append(check_finite(block))
                held += block.shape[1]
                if held > LONG * sampling_rate:  # longer than it says
                    return Recording(example)
        audio = np.concatenate(pieces, axis=1)
        if audio.shape[1] == 0:
            raise ValueError("it is empty: it has no samples.")
        return Recording(example, audio)
    except UNREADABLE as error:
        return Recording(example, reason=describe(check_damage(error)))


def check_damage(error: Exception) -> Exception:
    """`error`, where it is the fault of one recording. A network or a disk that fails is not, and is raised: the shard
    will be made again."""
    if isinstance(error, OSError) and not is_damage(error):
        raise error
    return error


def check_device(error: Exception):
    """Raise `error` where a device failed or is full: no fault of the recording that goes through it alone."""
    # Before torch 2.8 only the message tells.
    kinds = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", ()))
    if isinstance(error, kinds) or "CUDA error" in str(error):
        raise error


def describe(error: BaseException) -> str:
    """One line that says what went wrong, as text that UTF-8 can hold."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text.encode("utf-8", "backslashreplace").decode()


def gather(recordings: Iterable[Recording], most_samples: int) -> Iterator[list[Recording]]:
    """Runs of recordings, in order, that hold about `most_samples` of audio each, or end with a long one, whose file
    may be large."""
    pool: list[Recording] = []
    held = 0
    for recording in recordings:
        pool.append(recording)
        held += 0 if recording.audio is None else recording.audio.shape[1]
        if held >= most_samples or recording.is_long or len(pool) >= 4096:
            yield pool
            pool, held = [], 0
    if pool:
        yield pool
