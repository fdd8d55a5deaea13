"""What sources have in common: examples, the interface of a source, and which errors are damage."""

import errno
import io
import numbers
import os
import re
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from mimi_hf.utils.files import printable

from .locations import is_url, join, read_binary

_LOCAL_URL = re.compile("^(file|local)://")
# WAV files hold the rate in 32 bits; soundfile takes one of them for the sign.
_HIGHEST_RATE = 2**31 - 1


@dataclass(frozen=True)
class Example:
    """One recording of a source.

    Attributes:
        id: unique in the source; the same in every run and on every machine.
        audio: a path, the URL of a file, the bytes of an audio file, or `{"array": …, "sampling_rate": …}`;
            [`resolve_audio`] makes it readable. `None` if there is an `error`, or if there are codes.
        columns: the other values of the source; for their types see [`Source.schema`].
        start, duration: the part of the audio to use, in seconds; a `duration` of `None` means to the end.
        error: why the source cannot give this example; `None` if it can.
        codes: np.ndarray of shape (K, F), int64, in place of audio: of a [`CodesSource`] alone.
    """

    id: str
    audio: str | bytes | dict[str, Any] | None
    columns: dict[str, Any] = field(default_factory=dict)
    start: float = 0.0
    duration: float | None = None
    error: str | None = None
    codes: np.ndarray | None = None


class Source(ABC):
    """Many examples, cut into shards that any process can read by itself.

    A source is small when pickled, for other processes and machines: public attributes are pickled, attributes that
    begin with `_` are computed again when they are needed.
    """

    kind: ClassVar[str]

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe this source for a manifest, JSON-able: equal sources have equal descriptions."""

    @abstractmethod
    def shards(self, shard_size: int) -> list[dict[str, Any]]:
        """Cut the source into shards of about `shard_size` examples, without decoding any audio.

        Returns:
            Descriptions of shards, JSON-able. They are always the same for the same files.

        Raises:
            ValueError: `shard_size` is not a positive integer.
        """

    @abstractmethod
    def read(self, shard: dict[str, Any]) -> Iterator[Example]:
        """Read the examples of one shard, always in the same order. Bad ones have an `error`.

        Raises:
            OSError: a network or a disk failed.
        """

    @abstractmethod
    def schema(self) -> pa.Schema:
        """The names and types of `Example.columns`, for all shards. No column is called `id`."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def resolve_audio(example: Example) -> str | bytes:
    """Turn the audio of an example into the path or the bytes of a file.

    The content of a URL becomes bytes. So does a file whose name is not UTF-8, as soundfile cannot open it. An array
    becomes a WAV file of 32-bit floats.

    Raises:
        ValueError: the source could not give this example, its array is no audio, or its path is a folder, a device or
            a pipe.
        FileNotFoundError: there is no such file.
        OSError: the file cannot be fetched now; another try may succeed.

    Example:
        >>> resolve_audio(Example("one", "folder/one.wav"))
        'folder/one.wav'
    """
    if example.audio is None:
        raise ValueError(example.error or f"Example {example.id!r} has no audio.")
    audio = example.audio
    if not isinstance(audio, str):
        return _wav(**audio) if isinstance(audio, dict) else audio
    audio = _LOCAL_URL.sub("", audio)
    # Manifests may come from anywhere, and a device or a pipe may never end.
    if not is_url(audio) and os.path.exists(audio) and not os.path.isfile(audio):
        raise ValueError(f"{audio!r} is a folder, a device or a pipe, but a regular file is needed.")
    return read_binary(audio) if is_url(audio) or printable(audio) != audio else audio


def _wav(array: np.ndarray, sampling_rate: int | None) -> bytes:
    """A WAV file of audio (N,) or (C, N)."""
    import soundfile

    rate = float(sampling_rate) if isinstance(sampling_rate, numbers.Real) else 0.0
    if not 1 <= rate <= _HIGHEST_RATE or array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise ValueError(
            f"An array of {array.dtype}, of shape {array.shape}, with the sampling rate {sampling_rate!r}: floating"
            " point in [-1, 1], the shape (samples,) or (channels, samples), and a rate are needed."
        )
    file = io.BytesIO()
    try:
        soundfile.write(file, array.T.astype(np.float32), round(rate), format="WAV", subtype="FLOAT")
    except soundfile.SoundFileError as error:
        raise ValueError(f"An array of shape {array.shape} at {sampling_rate} Hz is no audio ({error}).") from error
    return file.getvalue()


def check_shard_size(shard_size: int) -> int:
    """Return `shard_size`.

    Raises:
        ValueError: it is not a positive integer.
    """
    if not isinstance(shard_size, numbers.Integral) or isinstance(shard_size, bool) or shard_size < 1:
        raise ValueError(f"shard_size={shard_size!r} must be a whole number of examples, at least 1; try 1000.")
    return int(shard_size)


def as_audio(value: Any, root: str) -> str | bytes | dict[str, Any]:
    """Turn the value of a column into `Example.audio`; paths are relative to the folder or URL `root`.

    Raises:
        ValueError: it holds no audio, or data of the Hub names a file of this machine.
    """
    if isinstance(value, dict):
        if value.get("array") is not None:
            return {"array": np.asarray(value["array"]), "sampling_rate": value.get("sampling_rate")}
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        if root.startswith("hf://") and (os.path.isabs(value) or _LOCAL_URL.match(value)):
            raise ValueError(f"{value!r} is a file of this machine, which data of the Hub must not name.")
        return value if is_url(value) or os.path.isabs(value) else join(root, value)
    if value is None or value == "":
        raise ValueError("There is no audio: neither bytes nor a path.")
    raise ValueError(f"The audio is of type {type(value).__name__}, but a path, bytes or a dictionary is needed.")


def is_damage(error: Exception) -> bool:
    """Whether `error` means that bytes are wrong or absent, and not, for example, that a network is down.

    Damage belongs to one example, and another try would find it again. Any other error should stop the work on a shard,
    so that it is done again. URLs raise no PermissionError, see [`mimi_hf.utils.remote`].
    """
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return True
    if type(error) is OSError and error.errno is None:  # pyarrow's, for damaged pages
        return True
    return isinstance(error, (ValueError, EOFError, tarfile.TarError, zlib.error, pa.ArrowException))


# Errors that may be damage: catch them, then ask `is_damage`.
DAMAGE = (ValueError, EOFError, OSError, tarfile.TarError, zlib.error, pa.ArrowException)
