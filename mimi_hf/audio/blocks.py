"""Audio block by block, in constant memory: files of any length, and pipes as they come.

Letters for shapes: C channels, N samples of the whole, n samples of a block.
"""

import contextlib
import io
import os
import shutil
import stat
import tempfile
from pathlib import Path

import numpy as np

from mimi_hf.utils.files import written_beside

from .mix import (
    _UNKNOWN_LENGTH,
    _WRITE_BLOCK,
    _check_writable,
    _open,
    _shorten,
    check_complete,
    check_rate,
    expected_samples,
    for_soundfile,
    mix_channels,
    unreadable,
)
from .pcm import PCMReader, beyond, clipped, exactly, read_wav_header, skip_by_reading

# More bytes of samples than this do not fit into a WAV file, but into its 64-bit form.
_WAV_LIMIT = 2**32 - 4096
# No recording lasts this many seconds: a start or a duration that long is a mistake.
TOO_LONG = 1e12


class AudioBlocks:
    """The audio of a file or a pipe, block by block. Put together, the blocks are what `read_audio` gives.

    A pipe that carries raw samples or WAV is read as it comes: a block holds what is there, up to `seconds` of it, and
    is never waited for once a sample is there. Other formats from a pipe go through a temporary file.

    Args:
        source (str, os.PathLike, bytes or binary file object): as of [`mimi_hf.audio.mix.read_audio`]; the path of a
            named pipe as well, and file objects that cannot seek. A file object is left open.
        sampling_rate (int, optional): resample to this rate. The source's own rate by default.
        channels (int, optional): mix to this number, see [`mimi_hf.audio.mix.mix_channels`]. All of them by default.
        seconds (float): of audio in a block, at most (resampling may move some samples to the next one).
        start, duration (float, optional): the part to read, in seconds. What lies past the end is left out.
        pcm (PCM, optional): what a source without a header is made of.

    Attributes:
        sampling_rate, channels: of the blocks.
        source_rate, source_channels: of the source.
        duration: seconds, as the header says (mp3: estimates); None where unknown, as in a pipe.
        num_samples: of all blocks together, at `sampling_rate`; None where it is not known for sure.

    Raises:
        FileNotFoundError, ValueError, TypeError: as `read_audio`; what is damaged shows only when it is reached.

    Example:

        >>> from mimi_hf.audio.blocks import AudioBlocks
        >>> from mimi_hf.audio.pcm import PCM
        >>> with AudioBlocks(bytes(96_000), sampling_rate=24_000, pcm=PCM(48_000)) as blocks:
        ...     sum(block.shape[1] for block in blocks)
        24000
    """

    def __init__(self, source, sampling_rate=None, channels=None, seconds=1.0, start=None, duration=None, *, pcm=None):
        if not seconds > 0:
            raise ValueError(f"seconds={seconds!r} must be positive: the length of a block.")
        for name, value in (("start", start), ("duration", duration)):
            if value is not None and not 0 <= value < TOO_LONG:
                raise ValueError(f"{name}={value!r} must be seconds, 0 or more and below {TOO_LONG:g}, or None.")
        with contextlib.ExitStack() as stack:
            self._reader = _open_reader(source, pcm, stack)
            self.source_rate, self.source_channels = self._reader.rate, self._reader.channels
            self.sampling_rate = self.source_rate if sampling_rate is None else check_rate(sampling_rate)
            self.channels = self.source_channels if channels is None else channels
            mix_channels(np.empty((self.source_channels, 0), np.float32), self.channels)  # refuses what it cannot mix
            self._begin(start, duration)
            self._stack = stack.pop_all()
        self._step = max(1, int(seconds * self.source_rate))
        self._resampler = self._make_resampler()

    def _begin(self, start, duration):
        """Go to `start`, and find out how much there is."""
        rate, frames = self.source_rate, self._reader.frames
        self._limit = None if duration is None else round(duration * rate)
        if start:
            self._reader.skip(round(start * rate))
            frames = None if frames is None else frames - round(start * rate)
        if frames is not None and self._limit is not None:
            frames = min(frames, self._limit)
        self.duration = None if frames is None else frames / rate
        self.num_samples = None
        if frames is not None and self._reader.exact:
            # soxr's rounding: the number of samples is a function of this and of both rates.
            same = rate == self.sampling_rate
            self.num_samples = frames if same else int(frames * self.sampling_rate / rate + 0.5)

    def _make_resampler(self):
        if self.source_rate == self.sampling_rate:
            return None
        import soxr

        return soxr.ResampleStream(
            self.source_rate, self.sampling_rate, self.channels, dtype="float32", quality="HQ"
        ).resample_chunk

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Close what was opened here."""
        self._stack.close()

    def __iter__(self):
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

    def _convert(self, samples, last=False):
        """samples (n, C) of the source -> (C, m), mixed and resampled."""
        block = mix_channels(samples.T, self.channels)
        if self._resampler is not None:
            block = self._resampler(np.ascontiguousarray(block.T), last=last).T
        return np.ascontiguousarray(block)


@contextlib.contextmanager
def write_blocks(path, sampling_rate, channels, num_samples=None):
    """A file that is written block by block: wav (16 bit), flac (16 bit) or ogg (Vorbis), as the extension says.

    It appears whole at the end of the `with` block, or, after an error, not at all.

    Args:
        path (str or os.PathLike): where to; what is there already is replaced.
        sampling_rate (int), channels (int): of the blocks.
        num_samples (int, optional): how many will come per channel, where known. WAV files of more than 4 GiB need it.

    Yields:
        a function that takes the next block: (C, n), floating point, clipped to [-1, 1].

    Raises:
        ValueError, OSError: as [`mimi_hf.audio.mix.write_audio`].

    Example:

        >>> with write_blocks("out.flac", 24_000, channels=1) as write:  # doctest: +SKIP
        ...     for block in blocks:
        ...         write(block)
    """
    import soundfile

    path = Path(os.fsdecode(path))
    kind, _, rate = _check_writable(path, np.zeros((channels, 1), np.float32), sampling_rate)
    if kind == "WAV" and (num_samples or 0) * channels * 2 > _WAV_LIMIT:
        kind = "RF64"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}. Create it first.")
    written = 0

    def write(block):
        nonlocal written
        written += block.shape[1] * channels * 2
        if kind == "WAV" and written > _WAV_LIMIT:
            raise ValueError(f"{path.name} would pass 4 GiB, which a .wav does not hold. Write .flac or .ogg instead.")
        samples = clipped(block).T
        for start in range(0, len(samples), _WRITE_BLOCK):
            sound.write(np.ascontiguousarray(samples[start : start + _WRITE_BLOCK]))

    try:
        with (
            written_beside(path) as aside,
            soundfile.SoundFile(for_soundfile(aside), "w", int(rate), channels, format=kind) as sound,
        ):
            yield write
    except soundfile.SoundFileError as error:
        raise OSError(f"{path.parent} takes no {kind} file: {error} Check permissions and free space.") from error


def _open_reader(source, pcm, stack):
    """The reader that suits `source`; what it opens is closed by `stack`."""
    if isinstance(source, (str, os.PathLike)):
        path, name = _open(source)
        mode = os.stat(path).st_mode
        if pcm is None and not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
            return _SoundReader(path, name, stack)
        source = stack.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115
    elif not hasattr(source, "read"):
        source, name = _open(source)
    else:
        name = f"the audio in {_shorten(getattr(source, 'name', type(source).__name__))}"
        if isinstance(source, io.TextIOBase):
            raise TypeError(f"The file object {source!r} gives str, not bytes. Open it with mode 'rb'.")
    if pcm is not None:
        return PCMReader(source, name, pcm)
    if _can_seek(source) and source.tell() == 0:
        return _SoundReader(source, name, stack)
    return _read_header(source, name, stack)


def _can_seek(file):
    return hasattr(file, "seekable") and file.seekable()


class _SoundReader:
    """Whatever libsndfile reads. `frames` is None where unknown, and certain where `exact`."""

    def __init__(self, file, name, stack):
        import soundfile

        class Forward(soundfile.SoundFile):
            # soundfile seeks after each read of what it can seek in, to where it is: which breaks mp3 apart.
            def seekable(self):
                return False

        self.name = name
        with self._explained():
            self.sound = stack.enter_context(Forward(for_soundfile(file)))
        self.rate, self.channels = self.sound.samplerate, self.sound.channels
        self.exact = self.sound.format != "MP3"
        self.frames = None if self.sound.frames == _UNKNOWN_LENGTH else self.sound.frames
        self.position = 0

    @contextlib.contextmanager
    def _explained(self):
        import soundfile

        try:
            yield
        except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless format, by its extension
            raise unreadable(self.name, error) from error

    def read(self, samples):
        """Up to `samples` samples, (n, C) float32; none at the end."""
        if self.exact and self.frames is not None:  # soundfile allocates what it is asked for
            samples = min(samples, self.frames - self.position)
        with self._explained():
            block = self.sound.read(samples, dtype="float32", always_2d=True)
        self.position += len(block)
        return block

    def skip(self, samples):
        """Go on `samples` later."""
        if self.frames is None or not self.exact:
            skip_by_reading(self, samples)
            return
        if samples >= self.frames:
            raise beyond(self.name, samples / self.rate, self.frames / self.rate)
        with self._explained():
            self.position = self.sound.seek(samples)

    def check_end(self):
        """Refuse a file that ended early, or is empty."""
        expected = 0 if self.frames is None else expected_samples(self.sound)
        check_complete(self.name, self.position, expected)


def _read_header(file, name, stack):
    """The reader of a pipe: of WAV as it comes, of anything else when it has ended."""
    head = exactly(file, 12)
    if not head:
        check_complete(name, 0, 0)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        return read_wav_header(file, name)
    whole = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    whole.write(head)
    shutil.copyfileobj(file, whole)
    whole.seek(0)
    return _SoundReader(whole, name, stack)
