"""Read and write audio, whole or block by block: files of any length in constant memory, and pipes as they come.

Letters for shapes: C channels, N samples of the whole, n samples of a block.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mimi_hf.utils.arrays import to_numpy
from mimi_hf.utils.files import BinaryReader, check_bytes, written_beside

from .mix import check_rate, mix_channels
from .pcm import PCM, clip_finite
from .readers import AudioSource, open_reader

# What is written, by extension: libsndfile's name of the format, the most channels and the highest sampling rate that
# it holds. libsndfile itself (1.2) crashes instead of refusing where Ogg's limits are passed.
WRITABLE = {
    ".wav": ("WAV", 1024, 2**31 - 1),
    ".flac": ("FLAC", 8, 655_350),
    ".ogg": ("OGG", 255, 200_000),
}
# No recording lasts this many seconds: a start or a duration that long is a mistake.
TOO_LONG = 1e12

_WHOLE_SECONDS = 60.0  # of the blocks that make a whole
# libsndfile (1.2) overflows its stack when it gets minutes of Ogg Vorbis in one call.
_WRITE_SAMPLES = 65_536
# A WAV file holds no more bytes of samples than this; its 64-bit form does.
_WAV_LIMIT = 2**32 - 4096


class AudioBlocks:
    """The audio of a file or a pipe, block by block. Put together, the blocks are what [`read_audio`] gives.

    Raw samples and WAV in a pipe are read as they come: a block holds what is there, up to `seconds` of it, and waits
    for its first sample alone. Other formats from a pipe go through a temporary file.

    Args:
        source: a path (also of a named pipe), the bytes of a file, or a binary file object, which need not seek and is
            left open.
        sampling_rate: resample to this rate. The source's own rate by default.
        channels: mix to this number, see [`mimi_hf.audio.mix.mix_channels`]. All of them by default.
        seconds: of audio in a block, at most (resampling may move some samples to the next one).
        start, duration: the part to read, in seconds. What lies past the end is left out.
        pcm: the format of a source without a header.

    Attributes:
        name: of the source, for messages.
        sampling_rate: of the blocks, samples per second.
        channels: C, of the blocks.
        source_rate: of the source, samples per second.
        source_channels: of the source.
        duration: seconds, as the header says (mp3: estimates); None where unknown, as in a pipe.
        num_samples: N, of all blocks together, at `sampling_rate`; None where it is not certain.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source is damaged (this shows only when the damage is reached), empty, or no audio; or an
            argument is out of its bounds.
        TypeError: `source` is nothing that can be read.

    Example:
        >>> from mimi_hf.audio import PCM, AudioBlocks
        >>> with AudioBlocks(bytes(96_000), sampling_rate=24_000, pcm=PCM(48_000)) as blocks:
        ...     sum(block.shape[1] for block in blocks)
        24000
    """

    def __init__(
        self,
        source: AudioSource,
        sampling_rate: float | None = None,
        channels: int | None = None,
        seconds: float = 1.0,
        start: float | None = None,
        duration: float | None = None,
        *,
        pcm: PCM | None = None,
    ):
        if not seconds > 0:
            raise ValueError(f"seconds={seconds!r} must be positive: the length of a block.")
        for name, value in (("start", start), ("duration", duration)):
            if value is not None and not 0 <= value < TOO_LONG:
                raise ValueError(f"{name}={value!r} must be seconds, 0 or more and below {TOO_LONG:g}, or None.")
        with ExitStack() as stack:
            self._reader = reader = open_reader(source, pcm, stack)
            self.name, self.source_rate, self.source_channels = reader.name, reader.rate, reader.channels
            self.sampling_rate = reader.rate if sampling_rate is None else check_rate(sampling_rate)
            self.channels = reader.channels if channels is None else channels
            mix_channels(np.empty((reader.channels, 0), np.float32), self.channels)  # refuses what it cannot mix
            skipped = round((start or 0) * reader.rate)
            if skipped:
                reader.skip(skipped)
            self._stack = stack.pop_all()
        self._step = max(1, int(seconds * reader.rate))
        self._limit = None if duration is None else round(duration * reader.rate)
        same = self.sampling_rate == reader.rate
        self.duration: float | None = None
        self.num_samples: int | None = None
        if reader.num_samples is not None:
            left = reader.num_samples - skipped
            left = left if self._limit is None else min(left, self._limit)
            self.duration = left / reader.rate
            if reader.exact:  # soxr's rounding is a function of the samples and both rates
                self.num_samples = left if same else int(left * self.sampling_rate / reader.rate + 0.5)
        self._resampler = None
        if not same:
            import soxr

            self._resampler = soxr.ResampleStream(
                reader.rate, self.sampling_rate, self.channels, dtype="float32", quality="HQ"
            )

    def __enter__(self) -> "AudioBlocks":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened here."""
        self._stack.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Arrays (C, n), float32, n >= 1."""
        taken = 0
        while True:
            samples = self._reader.read(self._step if self._limit is None else min(self._step, self._limit - taken))
            if not len(samples):
                break
            taken += len(samples)
            block = self._convert(samples)
            if block.shape[1]:
                yield block
        if self._limit is None or taken < self._limit:
            self._reader.check_end()
        if self._resampler is not None:
            block = self._convert(np.empty((0, self.source_channels), np.float32), last=True)
            if block.shape[1]:
                yield block

    def _convert(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """Samples (n, C) of the source -> (C, m), mixed and resampled."""
        block = mix_channels(np.ascontiguousarray(samples.T), self.channels)
        if self._resampler is not None:
            block = self._resampler.resample_chunk(np.ascontiguousarray(block.T), last=last).T
        return np.ascontiguousarray(block)


def read_audio(
    source: AudioSource, sampling_rate: float | None = None, channels: int | None = None
) -> tuple[np.ndarray, float]:
    """Read an audio file.

    Args:
        source: the path of a file, its bytes, or a binary file object, which is read to its end.
        sampling_rate: resample to this rate. The file's own rate by default.
        channels: mix to this number of channels, see [`mimi_hf.audio.mix.mix_channels`]. All of them by default.

    Returns:
        Audio of shape (C, N), float32 in [-1, 1], and its sampling rate.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, empty, or no audio.
        TypeError: `source` is nothing that can be read.

    Example:
        >>> from mimi_hf.audio import read_audio
        >>> audio, rate = read_audio("speech.flac", sampling_rate=24_000, channels=1)  # doctest: +SKIP
    """
    # libsndfile reads more formats from what can seek.
    if isinstance(source, BinaryReader) and not isinstance(source, (io.TextIOBase, os.PathLike)):
        content = io.BytesIO(check_bytes(source, source.read()))
        content.name = getattr(source, "name", type(source).__name__)  # for messages
        source = content
    with AudioBlocks(source, sampling_rate, channels, _WHOLE_SECONDS) as blocks:
        if blocks.duration is None:
            raise ValueError(
                f"{blocks.name} does not say how long it is, as it was streamed. Encode it again to a file, or read it"
                " with AudioBlocks."
            )
        nothing = np.empty((blocks.channels, 0), np.float32)  # what a sample may become when it is resampled
        return np.concatenate([nothing, *blocks], axis=1), blocks.sampling_rate


@contextmanager
def write_blocks(
    path: str | os.PathLike[str], sampling_rate: float, channels: int, num_samples: int | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a file block by block: wav (16 bit), flac (16 bit) or ogg (Vorbis), as the extension says.

    It appears whole at the end of the `with` block, or, after an error, not at all.

    Args:
        path: where to; what is there already is replaced.
        sampling_rate: of the blocks, samples per second.
        channels: C, of the blocks.
        num_samples: N, where known. WAV files of more than 4 GiB need it.

    Yields:
        A function that takes the next block: (C, n), floating point, clipped to [-1, 1].

    Raises:
        ValueError: an unknown extension; a rate or a number of channels that the format cannot hold; audio that is not
            finite, or too long for a WAV file.
        OSError: the file cannot be written, for example because its folder does not exist.

    Example:
        >>> with write_blocks("out.flac", 24_000, channels=1) as write:  # doctest: +SKIP
        ...     for block in blocks:
        ...         write(block)
    """
    import soundfile

    target, rate = Path(os.fsdecode(path)), check_rate(sampling_rate)
    if target.suffix.lower() not in WRITABLE:
        raise ValueError(f"{target} has the extension {target.suffix!r}, but known are {', '.join(WRITABLE)}.")
    kind, most_channels, highest_rate = WRITABLE[target.suffix.lower()]
    if not 1 <= channels <= most_channels:
        raise ValueError(
            f"Audio of {channels} channels cannot be written: {kind} holds up to {most_channels}. The shape must be"
            " (channels, samples): transpose, or mix."
        )
    if rate != int(rate) or rate > highest_rate:
        raise ValueError(
            f"sampling_rate={rate} must be a whole number up to {highest_rate} for {kind}. Resample first."
        )
    if kind == "WAV" and (num_samples or 0) * channels * 2 > _WAV_LIMIT:
        kind = "RF64"
    written = 0

    def write(block: np.ndarray) -> None:
        nonlocal written
        written += block.shape[1] * channels * 2
        if kind == "WAV" and written > _WAV_LIMIT:
            raise ValueError(
                f"{target.name} would pass 4 GiB, which a .wav does not hold. Write .flac or .ogg instead."
            )
        for start in range(0, block.shape[1], _WRITE_SAMPLES):
            sound.write(np.ascontiguousarray(clip_finite(block[:, start : start + _WRITE_SAMPLES]).T))

    try:
        with written_beside(target) as aside:
            place: Any = os.fsencode(aside)  # a path need not be UTF-8
            with soundfile.SoundFile(place, "w", int(rate), channels, format=kind) as sound:
                yield write
    except soundfile.SoundFileError as error:
        raise OSError(f"{target.parent} takes no {kind} file: {error} Check permissions and free space.") from error


def write_audio(path: str | os.PathLike[str], audio: ArrayLike, sampling_rate: float) -> None:
    """Write an audio file: wav (16 bit), flac (16 bit) or ogg (Vorbis), as the extension says.

    The file appears whole or not at all.

    Args:
        path: where to; what is there already is replaced.
        audio: (C, N) or (N,), an array or a torch tensor, real floating point. Clipped to [-1, 1].
        sampling_rate: samples per second.

    Raises:
        ValueError: audio that is empty; and as [`write_blocks`].
        TypeError: audio that is not floating point.
        OSError: as [`write_blocks`].
    """
    samples = to_numpy(audio)
    if samples.dtype.kind != "f":
        raise TypeError(f"Audio to write must be floating point in [-1, 1], not {samples.dtype}. Scale and convert it.")
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise ValueError(f"Audio to write has shape {samples.shape}, but (channels, samples) or (samples,) is needed.")
    samples = np.atleast_2d(samples)
    with write_blocks(path, sampling_rate, *samples.shape) as write:
        write(samples)
