"""Files and folders that appear whole or not at all."""

import io
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path

_LONGEST_NAME = 255  # bytes, on most file systems


@contextmanager
def written_beside(output: Path):
    """A path beside `output`, which takes its place at the end, in one step; after an error it is removed.

    Raises:
        FileExistsError: `output` is a device or a pipe, which must not be replaced.
    """
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
            os.replace(temporary, output)
            return
        # A folder cannot be renamed onto one that holds files: the old one steps aside, and back if that fails.
        os.rename(output, replaced)
        try:
            os.rename(temporary, output)
        except OSError:
            os.rename(replaced, output)
            raise
        shutil.rmtree(replaced)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_all(file, data):
    """Write bytes to a binary file object, which may take a part of them at a time, and flush it.

    Raises:
        BlockingIOError: a raw file that does not block takes nothing now.
    """
    view = memoryview(data)
    while view:
        written = file.write(view)
        if written is None and isinstance(file, io.RawIOBase):
            raise BlockingIOError("The output takes nothing now, as it does not block. Make it block, or buffer it.")
        view = view[len(view) if written is None else written :]  # other objects may tell nothing
    if hasattr(file, "flush"):
        file.flush()


def printable(name: str) -> str:
    """`name` as text that UTF-8 can hold; a file name may be any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_replaceable(folder: Path, names: set[str], force: bool = False):
    """Refuse a folder that cannot be made, or must not be replaced: what others have put there is never lost.

    Args:
        names: what a folder of this kind holds. One with anything else is not replaced.
        force: allow an earlier one to be replaced.

    Raises:
        OSError: with the reason, and what to do.
    """
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {folder.parent} to write to. Create it first.")
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Name a folder to make.")
    if folder.samefile("."):  # a shell would stay in the one that was replaced
        raise FileExistsError(f"{folder} is the current folder. Name one in it.")
    present = {path.name for path in folder.iterdir()}
    if others := present - names:
        raise FileExistsError(f"{folder} holds other files, such as {min(others)}. Name a folder that does not exist.")
    if present and not force:
        raise FileExistsError(f"{folder} exists. Name another folder, or add --force (force=True) to replace it.")
