"""Examples to codes: the function that every runner calls for each shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mimi_hf.corpus.reading import (
    UNREADABLE,
    Recording,
    check_damage,
    check_device,
    describe,
    gather,
    isolate_failures,
    open_blocks,
    read_recording,
)
from mimi_hf.corpus.sources import Example
from mimi_hf.inference.batches import check_batch_seconds, code_dtype, default_batch_seconds, encode_all
from mimi_hf.inference.recordings import encode_blocks
from mimi_hf.utils.ahead import iterate_ahead, map_ahead

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

# Recordings are sorted by length among as many as fill this many batches.
_POOL_BATCHES = 8
_LONG_PUSH = 20.0  # seconds of a long recording that the model takes at once


@dataclass
class Encoded:
    """The codes of an example, or why there are none.

    Attributes:
        example: without its audio, which may be the content of a whole file.
        codes: np.ndarray of shape (K, F), uint16 or uint32; `None` if it failed.
        num_samples: of its audio, at the model's rate.
        reason: why it failed.
    """

    example: Example
    codes: np.ndarray | None = None
    num_samples: int = 0
    reason: str | None = None

    def __post_init__(self):
        self.example = replace(self.example, audio=None)


@dataclass(frozen=True)
class EncodingOptions:
    """How examples are encoded.

    Attributes:
        num_quantizers: codebooks to use; all by default.
        batch_seconds: padded audio in a batch; by default what suits the device.
        readers: threads that decode and resample; by default as many as torch computes with, but 2 to 8.

    Raises:
        ValueError: `batch_seconds` or `readers` is not positive.
    """

    num_quantizers: int | None = None
    batch_seconds: float | None = None
    readers: int | None = None

    def __post_init__(self):
        check_batch_seconds(self.batch_seconds)
        if self.readers is not None and self.readers < 1:
            raise ValueError(f"readers={self.readers} must be at least 1 thread.")


def encode_examples(
    model: MimiModel,
    examples: Iterable[Example],
    options: EncodingOptions = EncodingOptions(),
    progress: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Encoded]:
    """Encode examples, in order. Threads read ahead while the model computes.

    The same examples always make the same batches, so their codes are the same, bit by bit.

    Args:
        model: a [`MimiModel`].
        examples: from a source.
        options: how to encode.
        progress: called with the seconds of audio that were encoded since the last call.

    Yields:
        Encoded: one for each example. If it is bad, it has no codes, but a reason.

    Raises:
        OSError: a network or a disk failed.
        RuntimeError: a device failed, or is full.
    """
    config = model.config
    batch_seconds = options.batch_seconds or default_batch_seconds(model)

    def read(example: Example) -> Recording:
        return read_recording(example, config.sampling_rate, config.audio_channels)

    readers = options.readers or min(8, max(2, torch.get_num_threads()))
    recordings = map_ahead(read, examples, readers, ahead=2 * readers)
    pools = gather(recordings, int(_POOL_BATCHES * batch_seconds * config.sampling_rate))
    for pool in iterate_ahead(pools):
        audio = [recording.audio for recording in pool if recording.audio is not None]
        codes = isolate_failures(lambda part: encode_all(model, part, options.num_quantizers, batch_seconds), audio)
        results = iter(codes)
        for recording in pool:
            if recording.audio is not None:
                result = next(results)
                if isinstance(result, Exception):
                    yield Encoded(recording.example, reason=describe(result))
                    continue
                samples = recording.audio.shape[1]
                progress(samples / config.sampling_rate)
                yield Encoded(recording.example, result, samples)
            elif recording.is_long:
                yield _encode_long(model, recording.example, options.num_quantizers, progress)
            else:
                yield Encoded(recording.example, reason=recording.reason)


def _encode_long(
    model: MimiModel, example: Example, num_quantizers: int | None, progress: Callable[[float], None]
) -> Encoded:
    """Encode an example as a stream, in constant memory."""
    config = model.config
    stream = model.encoder_stream(num_quantizers=num_quantizers)
    pieces, num_samples = [], 0
    try:
        with open_blocks(example, config.sampling_rate, config.audio_channels, _LONG_PUSH) as blocks:
            for codes, done in encode_blocks(stream, iterate_ahead(blocks), "the recording"):
                pieces.append(codes)
                progress((done - num_samples) / config.sampling_rate)
                num_samples = done
    except UNREADABLE as error:
        check_device(error)
        progress(-num_samples / config.sampling_rate)
        return Encoded(example, reason=describe(check_damage(error)))
    codes = torch.cat(pieces, dim=2)[0].cpu().numpy().astype(code_dtype(config.codebook_size))
    return Encoded(example, codes, num_samples)
