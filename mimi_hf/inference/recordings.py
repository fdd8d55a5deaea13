"""The one loop over a recording: blocks of audio become codes, and codes become audio, in constant memory.

Commands, corpora and evaluation all drive streams through these two functions. C counts the channels of a recording:
those of each row of the stream, one row after the other.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mimi_hf.codec.steps import Codec
from mimi_hf.codec.streaming import Flushed


class AudioToCodes(Protocol):
    """What is needed of a stream that encodes, such as [`EncoderStream`]."""

    model: Codec
    batch_size: int

    def push(self, chunk: Tensor) -> Tensor: ...
    def flush(self) -> Flushed: ...


class CodesToAudio(Protocol):
    """What is needed of a stream that decodes, such as [`DecoderStream`]."""

    def push(self, audio_codes: Tensor) -> Tensor: ...


class EncodedBlock(NamedTuple):
    """What a block of audio added.

    codes: Tensor, shape = (B, K, f), int64, the f >= 0 frames that became whole.
    num_samples: samples per channel that were encoded so far, this block's included.
    """

    codes: Tensor
    num_samples: int


def encode_blocks(
    stream: AudioToCodes, blocks: Iterable[np.ndarray], name: str, clock: AbstractContextManager | None = None
) -> Iterator[EncodedBlock]:
    """Push a recording through a stream, and flush it at the end.

    Args:
        stream: one that has just begun.
        blocks: arrays, shape = (C, n), float32, at the model's rate.
        name: of the recording, for messages.
        clock: is entered around the work of the model alone.

    Yields:
        EncodedBlock: one for each block, then one for the last frame, which may be missing.

    Raises:
        ValueError: the audio is not finite, or there is none.
    """
    clock = clock or nullcontext()
    rate, num_samples = stream.model.config.sampling_rate, 0
    for block in blocks:
        if not np.isfinite(block).all():
            near = num_samples / rate
            raise ValueError(f"{name} holds NaN or infinity, near {near:.2f} s. Repair it, or leave it out.")
        num_samples += block.shape[1]
        channels = len(block) // stream.batch_size
        chunk = torch.from_numpy(block).reshape(stream.batch_size, channels, block.shape[1])
        with clock:
            codes = stream.push(chunk)
        yield EncodedBlock(codes, num_samples)
    if not num_samples:
        raise ValueError(f"{name} is too short: nothing is left of it at {rate} Hz. Leave it out.")
    with clock:
        codes = stream.flush().audio_codes
    yield EncodedBlock(codes, num_samples)


def decode_codes(
    stream: CodesToAudio, pieces: Iterable[Tensor | np.ndarray], clock: AbstractContextManager | None = None
) -> Iterator[np.ndarray]:
    """Push codes through a stream.

    Args:
        stream: its rows are the channels of the recording, or have them.
        pieces: codes, shape = (B, K, f), integers.
        clock: is entered around the work of the model alone.

    Yields:
        np.ndarray: the audio of each piece, shape = (C, f * frame_size), float32.

    Raises:
        TypeError, ValueError: for codes that the model does not have.
    """
    clock = clock or nullcontext()
    for codes in pieces:
        with clock:
            audio = stream.push(torch.as_tensor(codes)).float().flatten(0, 1).cpu().numpy()
        yield audio
