"""Files on this machine and behind URLs: finding and opening them."""

import itertools
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from mimi_hf.utils.remote import connect, is_url, open_url, read_url

logger = logging.getLogger(__name__)

_GLOB = re.compile(r"[*?\[]")
_PATTERN = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_BRACES = 1_000_000


def join(root: str, name: str) -> str:
    """Join the path or URL of a folder and the relative path of a file.

    Example:
        >>> join("s3://bucket/lists", "../audio/a.wav")
        's3://bucket/audio/a.wav'
    """
    if is_url(root) and not {".", ".."}.isdisjoint(name.split("/")):  # behind a URL these mean nothing
        scheme, _, folder = root.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(folder, name))}"
    return posixpath.join(root, name)


def open_binary(path: str) -> Any:
    """Open a path, or a URL that fsspec knows, as a binary file that can seek.

    Raises:
        OSError, ValueError, ImportError: as [`mimi_hf.utils.remote.open_url`].
    """
    return open_url(_no_chain(path)) if is_url(path) else open(path, "rb")


def read_binary(path: str) -> bytes:
    """Read the content of a path, or of a URL that fsspec knows.

    Raises:
        OSError, ValueError, ImportError: as [`mimi_hf.utils.remote.read_url`].
    """
    if is_url(path):
        return read_url(_no_chain(path))
    with open(path, "rb") as file:
        return file.read()


def extension(name: str) -> str:
    """The extension of a file's name: the text after the last dot, in lower case; `tar.gz` and the like are one."""
    parts = posixpath.basename(name).lower().split(".")
    return ".".join(parts[-2:]) if len(parts) > 2 and parts[-2] == "tar" else parts[-1] if len(parts) > 1 else ""


class Files:
    """The files that a location names: one, all in a folder, or those that fit a pattern like `data-{000..012}.tar`.

    Hidden files and folders are ignored, and so are devices and pipes. Links are followed, but not in circles.

    Args:
        location: a path or URL of a file or folder, or a pattern of `*`, `**`, `?`, `[…]`, `{a,b}` and `{00..99}`.
        leave_out: a folder, path or URL, whose files are ignored if it lies in the location.

    Attributes:
        root (str): the folder, absolute, or its URL.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """

    def __init__(self, location: str, leave_out: str | None = None):
        self.location = location
        self.left_out = leave_out and _file_system(leave_out)[1].rstrip("/") + "/"
        file_system, path = _file_system(location)
        self.is_folder = file_system.isdir(path)
        if self.is_folder:
            root, self.patterns = path, []
        elif file_system.exists(path):
            root, self.patterns = posixpath.dirname(path), [path]
        else:
            if not _PATTERN.search(path):
                raise FileNotFoundError(f"There is no file or folder {location!r}. Check the spelling.")
            parts = path.split("/")
            first = next(i for i, part in enumerate(parts) if _PATTERN.search(part))
            root, self.patterns = "/".join(parts[:first]), expand_braces(path)
        self.root = (file_system.unstrip_protocol(root) if is_url(location) else root).rstrip("/") or "/"

    @cached_property
    def names(self) -> list[str]:
        """Paths of the files relative to `root`, sorted by their bytes.

        Raises:
            FileNotFoundError: one of several patterns names no file.
        """
        file_system, root = _file_system(self.root)
        prefix = root.rstrip("/") + "/"
        if not self.is_folder:
            paths = itertools.chain.from_iterable(self._match(file_system, pattern) for pattern in self.patterns)
            names = {path[len(prefix) :] for path in paths}
        elif is_url(self.root):
            names = {path[len(prefix) :] for path in file_system.find(root) if not path.endswith("/")}
        else:
            names = set(walk(root))
        if self.left_out and self.left_out != prefix and self.left_out.startswith(prefix):
            names = {name for name in names if not name.startswith(self.left_out[len(prefix) :])}
        visible = (name for name in names if not any(part.startswith(".") for part in name.split("/")))
        return sorted(visible, key=lambda name: name.encode("utf-8", "surrogateescape"))

    def select(self, extensions: Iterable[str]) -> list[str]:
        """Select the names with one of `extensions`.

        Raises:
            ValueError: there are none.
        """
        wanted = set(extensions)
        names = [name for name in self.names if extension(name) in wanted]
        if not names:
            raise ValueError(
                f"{self.location!r} has no file that ends in {', '.join('.' + end for end in extensions)}"
                f" ({len(self.names)} other files). Give another place, or another kind."
            )
        return names

    def path(self, name: str) -> str:
        """The path or URL of one of the `names`."""
        return join(self.root, name)

    def _match(self, file_system: Any, pattern: str) -> list[str]:
        if file_system.exists(pattern):
            return [pattern]
        found = file_system.glob(pattern, detail=True) if _GLOB.search(pattern) else {}
        paths = [path for path, info in found.items() if info["type"] != "directory"]
        if not paths:
            raise FileNotFoundError(f"{self.location!r} names {pattern!r}, but there is no such file.")
        return paths

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "names"}


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{000..012}` like a shell.

    Example:
        >>> expand_braces("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']

    Raises:
        ValueError: there are more than a million.
    """
    pieces = _BRACES.split(pattern)  # text, inside of braces, text, …
    choices = [[piece] if i % 2 == 0 else _choices(piece) for i, piece in enumerate(pieces)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > _MOST_BRACES:
        raise ValueError(f"{pattern!r} names {total} files, more than {_MOST_BRACES}. Use a narrower range, or `*`.")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str) -> list[str] | range:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not numbers:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = numbers.groups()
    if int(last) - int(first) >= _MOST_BRACES:
        raise ValueError(f"{{{inside}}} names more than {_MOST_BRACES} files. Use a narrower range, or `*`.")
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _file_system(location: str) -> tuple[Any, str]:
    """Fsspec's file system of a location, and the path in it."""
    if not is_url(location):  # not through fsspec, for which "::" in a path has a meaning
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(location)
    return connect(_no_chain(location))


def _no_chain(url: str) -> str:
    if "::" in url:
        raise ValueError(f"{url!r} is a chain of URLs, which is not supported. Unpack the archive first.")
    return url


def walk(root: str | os.PathLike[str]) -> Iterator[str]:
    """List the files under a local folder, as paths relative to it.

    A link to a folder that it lies in is not followed. A folder that may not be read, such as `lost+found`, is left out
    with a warning.

    Raises:
        PermissionError: `root` itself may not be read.
    """
    stack: list[tuple[str, tuple]] = [("", ())]
    while stack:
        folder, ancestors = stack.pop()
        path = os.path.join(root, folder)
        try:
            identity = _identity(path)
            if identity in ancestors:
                continue
            with os.scandir(path) as found:
                entries = list(found)
        except PermissionError as error:
            if not folder:
                raise
            logger.warning("The folder %r is left out: it may not be read (%s).", path, error.strerror)
            continue
        for entry in entries:
            name = posixpath.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                yield name  # a link to nowhere is an example, too: one that cannot be read
            elif entry.is_dir():
                stack.append((name, (*ancestors, identity)))
            elif entry.is_file():
                yield name


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
