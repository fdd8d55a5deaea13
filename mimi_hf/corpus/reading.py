"""Reading the recordings of a source, and telling a bad recording from a failure of network, disk or device."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from mimi_hf.audio import AudioBlocks
from mimi_hf.inference.batches import group_in_order

from .sources import Example, resolve_audio
from .sources.base import is_damage

# Recordings that are longer than this, in seconds, are never held whole: they go through the model as a stream.
LONG = 300.0
_MOST_AT_ONCE = 4096  # recordings
# What a bad recording may raise. An OSError may also be a network that is down: `check_damage` tells.
UNREADABLE = (OSError, ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, EOFError)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Recording:
    """An example with its audio.

    Attributes:
        example: as the source gave it.
        audio: np.ndarray of shape (C, N), float32; `None` if it is too long to be held, or could not be read.
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
    """Open the audio of an example, to read it block by block.

    Args:
        example: from a source.
        sampling_rate, channels: what the audio is converted to.
        seconds: length of a block.

    Raises:
        OSError, ValueError, TypeError: as [`resolve_audio`] and [`AudioBlocks`].
    """
    return AudioBlocks(resolve_audio(example), sampling_rate, channels, seconds, example.start, example.duration)


def check_finite(block: np.ndarray) -> np.ndarray:
    """Return `block`.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if not np.isfinite(block).all():
        raise ValueError("its samples hold NaN or infinity. Repair it, or leave it out.")
    return block


def read_recording(example: Example, sampling_rate: int, channels: int) -> Recording:
    """Read an example, unless it is longer than `LONG`. If it is bad, the result has the `reason`.

    Raises:
        OSError: a network or a disk failed.
    """
    try:
        with open_blocks(example, sampling_rate, channels, seconds=LONG) as blocks:
            if blocks.duration is not None and blocks.duration > LONG:
                return Recording(example)
            parts, samples = [np.empty((channels, 0), np.float32)], 0
            for block in blocks:
                parts.append(check_finite(block))
                samples += block.shape[1]
                if samples > LONG * sampling_rate:  # longer than its header says
                    return Recording(example)
        audio = np.concatenate(parts, axis=1)
        if audio.shape[1] == 0:
            raise ValueError("it is empty: it has no samples.")
        return Recording(example, audio)
    except UNREADABLE as error:
        return Recording(example, reason=describe(check_damage(error)))


def gather(recordings: Iterable[Recording], limit: float) -> Iterator[list[Recording]]:
    """Group recordings, in order, until they hold `limit` samples.

    A group also ends with a long recording, as the bytes of its file may already take much memory.
    """

    def size(recording: Recording) -> float:
        if recording.is_long:
            return math.inf
        return 0 if recording.audio is None else recording.audio.shape[1]

    return group_in_order(recordings, size, limit, _MOST_AT_ONCE)


def isolate_failures(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]
) -> list[Result | Exception]:
    """Call `function(items)`; if it fails, call it with the first and the second half, and so on.

    So one bad item does not cost the others: it alone has its error in place of a result. A batch that overflows half
    precision, or the memory of a GPU, becomes smaller ones.

    Raises:
        RuntimeError: a device failed, or has no room for a single item.
    """
    try:
        return [*function(items)]
    except UNREADABLE as error:
        if len(items) == 1:
            check_device(error)
            return [error]
        middle = len(items) // 2
        return isolate_failures(function, items[:middle]) + isolate_failures(function, items[middle:])


def check_damage(error: Exception) -> Exception:
    """Return `error` if the recording is bad.

    Raises:
        OSError: `error`, if a network or a disk failed. Another try may succeed.
    """
    if isinstance(error, OSError) and not is_damage(error):
        raise error
    return error


def check_device(error: Exception) -> None:
    """Do nothing if the recording is bad.

    Raises:
        RuntimeError: `error`, if a device failed or is full. Other recordings would fail as well.
    """
    # Before torch 2.8 only the message tells.
    kinds = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", ()))
    if isinstance(error, kinds) or "CUDA error" in str(error):
        raise error


def describe(error: BaseException) -> str:
    """Describe an error in one line of text that UTF-8 can hold."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text.encode("utf-8", "backslashreplace").decode()
