"""Files and folders that appear whole or not at all, and reading and writing of file objects."""

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

_LONGEST_NAME = 255  # bytes, on most file systems
_READ_SIZE = 2**20  # bytes: raw files allocate what they are asked for


@contextmanager
def written_beside(output: Path) -> Iterator[Path]:
    """Write a file or a folder whole or not at all.

    Gives a path in the same folder to write to. At the end of the `with` block it takes the place of `output` in one
    step; after an error it is removed.

    Raises:
        FileNotFoundError: there is no folder to write to.
        FileExistsError: `output` is a device or a pipe, which must not be replaced.
        IsADirectoryError: a file was written, but `output` is a folder.
    """
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output} cannot be written: there is no folder {output.parent}. Create it first.")
    output = output.resolve()
    if output.exists() and not (output.is_file() or output.is_dir()):
        raise FileExistsError(f"{output} is a device or a pipe. Name a file, or - for standard output.")
    name = output.name
    while len(os.fsencode(name)) > _LONGEST_NAME - len("..12345678.new"):
        name = name[:-1]
    temporary, replaced = (output.with_name(f".{name}.{uuid.uuid4().hex[:8]}.{end}") for end in ("new", "old"))
    try:
        yield temporary
        if not output.is_dir():
            temporary.replace(output)
            return
        if not temporary.is_dir():
            raise IsADirectoryError(f"{output} is a folder. Name a file to write.")
        # A folder cannot be renamed onto one that holds files: the old one steps aside, and back if that fails.
        output.rename(replaced)
        try:
            temporary.rename(output)
        except OSError:
            replaced.rename(output)
            raise
        shutil.rmtree(replaced)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@runtime_checkable
class BinaryReader(Protocol):
    """A file object that gives bytes: a file, a pipe, a socket. It need not seek, nor block for all of `size`."""

    def read(self, size: int = ..., /) -> Any:
        """Up to `size` bytes; none at the end."""
        ...


class SeekableReader(BinaryReader, Protocol):
    """A file object that gives bytes, and can go back."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Go to a place; returns its distance from the beginning."""
        ...

    def tell(self) -> int:
        """Where the file is."""
        ...


class BinaryWriter(Protocol):
    """A file object that takes bytes; it may take a part of them at a time, and say how many."""

    def write(self, data: Any, /) -> Any:
        """Take bytes, and return how many, or None where all are taken."""
        ...


def check_bytes(file: BinaryReader, data: Any) -> bytes:
    """Return `data`, which `file` gave, if it is bytes.

    Raises:
        BlockingIOError: it is None: the file does not block, and nothing is there yet.
        TypeError: it is something else, as from a file in text mode.
    """
    if isinstance(data, bytes):
        return data
    if data is None:
        raise BlockingIOError(f"{file!r} does not block, and nothing is there yet. Open it in blocking mode.")
    raise TypeError(f"The file object {file!r} gives {type(data).__name__}, not bytes. Open it with mode 'rb'.")


def read_available(file: BinaryReader, size: int) -> bytes:
    """Read the bytes that are there, up to `size`: wait for the first one alone. None are there at the end.

    Raises:
        BlockingIOError, TypeError: see [`check_bytes`].
    """
    return check_bytes(file, getattr(file, "read1", file.read)(size)) if size > 0 else b""


def read_exactly(file: BinaryReader, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end of the file.

    Raises:
        BlockingIOError, TypeError: see [`check_bytes`].
    """
    parts, left = [], size
    while left and (data := check_bytes(file, file.read(min(left, _READ_SIZE)))):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def as_seekable(file: BinaryReader) -> SeekableReader | None:
    """Return the file itself if it can seek, else None."""
    seekable = getattr(file, "seekable", None)
    return cast(SeekableReader, file) if seekable is not None and seekable() else None


def write_all(file: BinaryWriter, data: bytes) -> None:
    """Write bytes to a file object, however few it takes at a time, and flush it.

    Raises:
        BlockingIOError: a raw file that does not block takes nothing now.
    """
    view = memoryview(data)
    while view:
        written = file.write(view)
        if written is None and isinstance(file, io.RawIOBase):
            raise BlockingIOError("The output takes nothing now, as it does not block. Make it block, or buffer it.")
        view = view[len(view) if written is None else written :]  # other objects need not say how much they took
    if (flush := getattr(file, "flush", None)) is not None:
        flush()


def printable(name: str) -> str:
    """Return a file name, which may be any bytes, as text that UTF-8 can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_replaceable(folder: Path, names: set[str], force: bool = False) -> None:
    """Refuse an output folder that cannot be made or must not be replaced, so that no other files are lost.

    Args:
        folder: where the output goes.
        names: of the files in such an output. A folder with any other file is not replaced.
        force: allow an earlier output to be replaced.

    Raises:
        OSError: with the reason and the remedy.
    """
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {folder.parent} to write to. Create it first.")
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Name a folder to make.")
    if folder.samefile("."):  # a shell would stay in the old folder, which is gone
        raise FileExistsError(f"{folder} is the current folder. Name one in it.")
    present = {path.name for path in folder.iterdir()}
    if others := present - names:
        raise FileExistsError(f"{folder} holds other files, such as {min(others)}. Name a folder that does not exist.")
    if present and not force:
        raise FileExistsError(f"{folder} exists. Name another folder, or add --force (force=True) to replace it.")
