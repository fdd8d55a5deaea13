"""Examples to codes: the one function that every engine calls for each shard."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mimi_hf.corpus.reading import (
    UNREADABLE,
    Recording,
    check_damage,
    check_device,
    check_finite,
    describe,
    gather,
    open_blocks,
    read_recording,
)
from mimi_hf.corpus.sources import Example
from mimi_hf.inference.batches import check_batch_seconds, code_dtype, default_batch_seconds, encode_all
from mimi_hf.utils.ahead import iterate_ahead, map_ahead

# Recordings are sorted by length among so many batches of them.
_POOL_BATCHES = 8
_LONG_PUSH = 20.0  # seconds of a long recording that the model takes at once


@dataclass
class Encoded:
    """What became of an example.

    codes: np.ndarray of shape (K, F), or `None` where it failed.
    num_samples: of its audio, at the model's rate.
    reason: why it failed.
    """

    example: Example
    codes: np.ndarray | None = None
    num_samples: int = 0
    reason: str | None = None

    def __post_init__(self):
        self.example = replace(self.example, audio=None)  # the content of a whole file, maybe


@dataclass(frozen=True)
class EncodingOptions:
    """How examples are encoded.

    num_quantizers: codebooks to use; all by default.
    batch_seconds: padded audio in a batch; by default what suits the device.
    readers: threads that decode and resample; by default as many as the process may compute with, 2 to 8.
    """

    num_quantizers: int | None = None
    batch_seconds: float | None = None
    readers: int | None = None

    def __post_init__(self):
        check_batch_seconds(self.batch_seconds)
        if self.readers is not None and self.readers < 1:
            raise ValueError(f"readers={self.readers} must be at least 1 thread.")


def encode_examples(
    model,
    examples: Iterable[Example],
    options: EncodingOptions = EncodingOptions(),
    progress: Callable[[float], None] = lambda seconds: None,
) -> Iterable[Encoded]:
    """Encode examples, in order. Reading runs ahead of the model; what cannot be read, or encoded, gets a reason.

    Batches are made of examples alone and the same ones each time, so that the same codes come out, bit by bit.

    Args:
        model: a [`MimiModel`].
        examples: from a source.
        progress: called with the seconds of audio that were encoded since the last call.
    """
    config = model.config
    batch_seconds = options.batch_seconds or default_batch_seconds(model)

    def read(example: Example) -> Recording:
        return read_recording(example, config.sampling_rate, config.audio_channels)

    readers = options.readers or min(8, max(2, torch.get_num_threads()))
    recordings = map_ahead(read, examples, readers, ahead=2 * readers)
    pools = gather(recordings, int(_POOL_BATCHES * batch_seconds * config.sampling_rate))
    for pool in iterate_ahead(pools):
        short = [recording for recording in pool if recording.audio is not None]
        results = iter(_encode_short(model, short, options.num_quantizers, batch_seconds))
        for recording in pool:
            if recording.audio is not None:
                encoded = next(results)
                progress(encoded.num_samples / config.sampling_rate)
            elif recording.is_long:
                encoded = _encode_long(model, recording.example, options.num_quantizers, progress)
            else:
                encoded = Encoded(recording.example, reason=recording.reason)
            yield encoded


def _encode_short(model, recordings: list[Recording], num_quantizers, batch_seconds) -> list[Encoded]:
    audio = [recording.audio for recording in recordings]
    try:
        codes = encode_all(model, audio, num_quantizers, batch_seconds)
    except UNREADABLE as error:  # among them: a batch that overflows half precision, or the memory of a GPU
        if len(recordings) == 1:
            check_device(error)
            return [Encoded(recordings[0].example, reason=describe(error))]
        middle = len(recordings) // 2
        halves = recordings[:middle], recordings[middle:]
        return [encoded for half in halves for encoded in _encode_short(model, half, num_quantizers, batch_seconds)]
    return [
        Encoded(recording.example, code, recording.audio.shape[1])
        for recording, code in zip(recordings, codes, strict=True)
    ]


def _encode_long(model, example: Example, num_quantizers, progress) -> Encoded:
    """As a stream, in constant memory."""
    config = model.config
    stream = model.encoder_stream(num_quantizers=num_quantizers)
    pieces, num_samples = [], 0
    try:
        with open_blocks(example, config.sampling_rate, config.audio_channels, _LONG_PUSH) as blocks:
            for block in iterate_ahead(blocks):
                chunk = torch.from_numpy(check_finite(block))[None].to(model.device, model.dtype)
                pieces.append(stream.push(chunk))
                num_samples += block.shape[1]
                progress(block.shape[1] / config.sampling_rate)
        pieces.append(stream.flush().audio_codes)
    except UNREADABLE as error:
        check_device(error)
        progress(-num_samples / config.sampling_rate)
        return Encoded(example, reason=describe(check_damage(error)))
    codes = torch.cat(pieces, dim=2)[0].cpu().numpy().astype(code_dtype(config.codebook_size))
    return Encoded(example, codes, num_samples)


@dataclass
class ShardReport:
    """What a shard holds, in numbers that do not depend on the run that made it.

    examples, samples, frames: of what was encoded.
    counts: np.ndarray of shape (K, V), int64: how often each entry was used.
    failures: id and reason of each example that could not be encoded.
    """

    counts: np.ndarray
    examples: int = 0
    samples: int = 0
    frames: int = 0
    failures: list[dict] = field(default_factory=list)

    @classmethod
    def empty(cls, num_quantizers: int, codebook_size: int) -> "ShardReport":
        """The report of nothing."""
        return cls(np.zeros((num_quantizers, codebook_size), np.int64))

    def add(self, encoded: Encoded):
        """Count one more example."""
        if encoded.codes is None:
            self.failures.append({"id": encoded.example.id, "reason": encoded.reason})
            return
        self.examples += 1
        self.samples += encoded.num_samples
        self.frames += encoded.codes.shape[1]
        for counts, codes in zip(self.counts, encoded.codes, strict=True):
            counts += np.bincount(codes, minlength=len(counts))

    def merge(self, other: "ShardReport"):
        """Count all that another report holds."""
        self.counts += other.counts
        self.examples += other.examples
        self.samples += other.samples
        self.frames += other.frames
        self.failures += other.failures

    def to_dict(self) -> dict:
        """JSON-able; [`from_dict`] reads it."""
        import base64
        import zlib

        packed = base64.b64encode(zlib.compress(self.counts.astype("<i8").tobytes(), 9)).decode()
        return {**self.__dict__, "counts": packed, "shape": list(self.counts.shape)}

    @classmethod
    def from_dict(cls, content: dict) -> "ShardReport":
        """The report that [`to_dict`] wrote."""
        import base64
        import zlib

        content = dict(content)
        counts = np.frombuffer(zlib.decompress(base64.b64decode(content["counts"])), "<i8")
        content["counts"] = counts.reshape(content.pop("shape")).astype(np.int64)
        return cls(**content)
