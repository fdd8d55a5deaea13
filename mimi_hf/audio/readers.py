"""Readers of single sources: files that libsndfile decodes, and pipes of raw samples or WAV.

Letters for shapes: C channels, n samples of a block.
"""

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np

from mimi_hf.utils.files import BinaryReader, as_seekable, check_bytes, read_available, read_exactly

from .pcm import PCM, decode_samples, read_wav_header

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryReader

# The formats that are read: for folders, by the extensions in use, and in messages.
AUDIO_EXTENSIONS = (
    *("wav", "rf64", "w64", "flac", "ogg", "oga", "opus", "mp3"),
    *("aiff", "aif", "aifc", "au", "snd", "caf"),
)
READABLE = "wav, flac, ogg (Vorbis, Opus), mp3, aiff, au, caf and whatever else libsndfile knows"
# Samples that libsndfile reports for a FLAC file whose header does not say how long it is.
_UNKNOWN_LENGTH = 2**63 - 1
_SKIP_SAMPLES = 65_536  # that are read at a time to skip them


class SampleReader(Protocol):
    """What [`mimi_hf.audio.blocks.AudioBlocks`] reads from.

    Attributes:
        name: of the source, for messages.
        rate: samples per second.
        channels: C.
        num_samples: per channel, as the header says; None where it does not.
        exact: whether `num_samples` is certain.
    """

    name: str
    rate: float
    channels: int
    num_samples: int | None
    exact: bool

    def read(self, samples: int) -> np.ndarray:
        """Read up to `samples` samples, (n, C) float32; none at the end."""
        ...

    def skip(self, samples: int) -> None:
        """Leave out `samples` samples. Raises ValueError where there are fewer."""
        ...

    def check_end(self) -> None:
        """Raise ValueError for a source that ended early, or is empty."""
        ...


def open_reader(source: AudioSource, pcm: PCM | None, stack: ExitStack) -> SampleReader:
    """Open the reader that suits `source`.

    Args:
        source, pcm: as of [`mimi_hf.audio.blocks.AudioBlocks`].
        stack: closes what is opened here.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        file, name = io.BytesIO(source), f"the audio of {memoryview(source).nbytes} bytes"
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = _shorten(path)
        if not os.path.exists(path) or os.path.isdir(path):
            problem = "is a folder" if os.path.isdir(path) else "does not exist"
            raise FileNotFoundError(f"{name} {problem}; the path of an audio file is needed.")
        mode = os.stat(path).st_mode
        if pcm is None and not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
            return SoundReader(path, name, stack)
        file = stack.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115
    elif isinstance(source, BinaryReader):
        if isinstance(source, io.TextIOBase):
            check_bytes(source, "")
        file, name = source, f"the audio in {_shorten(getattr(source, 'name', type(source).__name__))}"
    else:
        raise TypeError(
            f"Audio cannot be read from {type(source).__name__}. Give a path, the bytes of a file, or a binary file"
            " object."
        )
    if pcm is not None:
        return PCMReader(file, name, pcm)
    seekable = as_seekable(file)
    if seekable is not None and seekable.tell() == 0:
        return SoundReader(file, name, stack)
    return _open_pipe(file, name, stack)


def _open_pipe(file: BinaryReader, name: str, stack: ExitStack) -> SampleReader:
    """The reader of a pipe: of WAV as it comes, of other formats from a temporary file when the pipe has ended."""
    head = read_exactly(file, 12)
    if not head:
        _check_complete(name, 0, 0)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        try:
            pcm, length = read_wav_header(file)
        except ValueError as error:
            raise _unreadable_error(name, error) from error
        return PCMReader(file, name, pcm, length)
    whole = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    whole.write(head)
    while data := read_exactly(file, 2**20):
        whole.write(data)
    whole.seek(0)
    return SoundReader(whole, name, stack)


class SoundReader:
    """Whatever libsndfile reads: a [`SampleReader`] of a path, or of a file object that can seek."""

    def __init__(self, file: str | BinaryReader, name: str, stack: ExitStack):
        import soundfile

        class Forward(soundfile.SoundFile):
            # After each read of a file that can seek, soundfile seeks to where it is: which breaks mp3 apart.
            def seekable(self) -> bool:
                return False

        self.name = name
        place: Any = os.fsencode(file) if isinstance(file, str) else file  # the bytes of a path need not be UTF-8
        with self._explained():
            self.sound = stack.enter_context(Forward(place))
        self.rate: float = self.sound.samplerate
        self.channels: int = self.sound.channels
        self.exact: bool = self.sound.format != "MP3"
        self.num_samples: int | None = None if self.sound.frames == _UNKNOWN_LENGTH else self.sound.frames
        self._position = 0

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import soundfile

        try:
            yield
        # TypeError: a headerless format, by its extension. MemoryError: a header that claims too much.
        except (soundfile.SoundFileError, TypeError, MemoryError) as error:
            raise _unreadable_error(self.name, error) from error

    def read(self, samples: int) -> np.ndarray:
        if self.exact and self.num_samples is not None:  # soundfile allocates what it is asked for
            samples = min(samples, self.num_samples - self._position)
        with self._explained():
            block = self.sound.read(samples, dtype="float32", always_2d=True)
        self._position += len(block)
        return block

    def skip(self, samples: int) -> None:
        if self.num_samples is None or not self.exact:
            _skip_by_reading(self, samples)
            return
        if samples >= self.num_samples:
            raise _past_end_error(self.name, samples / self.rate, self.num_samples / self.rate)
        with self._explained():
            self._position = self.sound.seek(samples)

    def check_end(self) -> None:
        _check_complete(self.name, self._position, self.num_samples or 0 if self.exact else 0)


class PCMReader:
    """Samples of a file object, as they come: a [`SampleReader`] of `length` bytes, or until the file ends."""

    exact = False

    def __init__(self, file: BinaryReader, name: str, pcm: PCM, length: int | None = None):
        self.file, self.name, self.pcm = file, name, pcm
        self.rate, self.channels = pcm.sampling_rate, pcm.channels
        self.num_samples = None if length is None else length // pcm.width
        self._left, self._rest, self._position = length, b"", 0

    def read(self, samples: int) -> np.ndarray:
        wanted, data = samples * self.pcm.width, self._rest
        while wanted and len(data) < self.pcm.width:
            missing = wanted - len(data)
            more = read_available(self.file, missing if self._left is None else min(missing, self._left))
            if not more:
                break
            self._left = None if self._left is None else self._left - len(more)
            data += more
        whole = len(data) // self.pcm.width * self.pcm.width
        self._rest = data[whole:]
        self._position += whole // self.pcm.width
        return decode_samples(data[:whole], self.pcm)

    def skip(self, samples: int) -> None:
        _skip_by_reading(self, samples)

    def check_end(self) -> None:
        # What follows the samples is read as well, so that its writer does not find the pipe closed.
        while self._left is not None and read_available(self.file, 65_536):
            pass
        _check_complete(self.name, self._position, 0)


def _skip_by_reading(reader: SampleReader, samples: int) -> None:
    read = 0
    while read < samples:
        block = reader.read(min(samples - read, _SKIP_SAMPLES))
        if not len(block):
            raise _past_end_error(reader.name, samples / reader.rate, read / reader.rate)
        read += len(block)


def _past_end_error(name: str, start: float, duration: float) -> ValueError:
    return ValueError(f"start={start:g} s lies past the end of {name}, which lasts {duration:g} s. Start earlier.")


def _unreadable_error(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name} cannot be read as audio ({error}). It is damaged, or its format is not among those supported:"
        f" {READABLE}."
    )


def _check_complete(name: str, samples: int, expected: int) -> None:
    """Refuse a source that ended early, or is empty."""
    if samples < expected:
        raise ValueError(f"{name} is damaged: only {samples} of its {expected} samples can be read.")
    if not samples:
        raise ValueError(f"{name} is empty: it has no samples. Leave it out.")


def _shorten(name: object) -> str:
    """A path for a message; a text that was mistaken for a path may be long."""
    text = str(name)
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
