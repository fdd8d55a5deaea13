"""Read from URLs that fsspec knows. Errors tell an absent file from a place that cannot be reached."""

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GONE = (404, 410)


def is_url(path: str) -> bool:
    """Whether `path` begins with the scheme of a URL."""
    return _URL.match(path) is not None


def connect(url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the path in it.

    Raises:
        ValueError: fsspec knows no such URLs.
        ImportError: it needs a package for them that cannot be imported. The message names it.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        cause = error.__cause__
        missing = cause.name.partition(".")[0] if isinstance(cause, ModuleNotFoundError) and cause.name else None
        remedy = f" Install it: pip install {missing}" if missing else ""
        raise ImportError(f"{url} needs a package that cannot be imported: {error}.{remedy}", name=missing) from error


def read_url(url: str) -> bytes:
    """Read the file behind a URL.

    Raises:
        FileNotFoundError: a server said that there is no such file.
        OSError: the file cannot be read, and may exist; with an `errno`.
        ValueError, ImportError: as [`connect`].
    """
    with _explained(url):
        return _content(url)


def open_url(url: str) -> io.RawIOBase:
    """Open the file behind a URL: binary, seekable. Its methods raise what [`read_url`] raises."""
    with _explained(url):
        file_system, path = connect(url)
        return _RemoteFile(url, file_system.open(path, "rb"))


def fetch(path: str) -> str | bytes:
    """Fetch the content behind a URL, or a chain of them. The path of a local file is returned as it is.

    Raises:
        ValueError: the content cannot be fetched, for any reason.
    """
    if "://" not in path or os.path.exists(path):
        return path
    try:
        return _content(path)
    except ImportError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # every protocol has errors of its own
        raise ValueError(
            f"{path} cannot be fetched ({type(error).__name__}: {error}). Check the address and the network, or fetch"
            " it by other means and pass the file."
        ) from error


def is_absent(error: Exception) -> bool:
    """Whether an error proves that there is no file behind a URL.

    A FileNotFoundError is no proof: fsspec's HTTP raises it for names that cannot be resolved, timeouts and any status.
    """
    cause = error
    while type(cause) is FileNotFoundError:
        if cause.__cause__ is None:
            return True
        cause = cause.__cause__
    if cause is not error and isinstance(cause, (KeyError, ValueError)) and not isinstance(cause, OSError):
        return True  # not in a listing, or no possible address
    return _status(cause) in _GONE


def _content(url: str) -> bytes:
    file_system, path = connect(url)
    return file_system.cat_file(path)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn every error into one of those that [`read_url`] raises."""
    try:
        yield
    except (ImportError, MemoryError, IsADirectoryError):
        raise
    except Exception as error:  # HTTP clients' errors share no class
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise
        if is_absent(error):
            raise FileNotFoundError(errno.ENOENT, "There is no such file", url) from error
        raise OSError(errno.EIO, f"{url} cannot be read ({type(error).__name__}: {error})") from error


class _RemoteFile(io.RawIOBase):
    def __init__(self, url: str, file: Any):
        super().__init__()
        self.url, self.file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def read(self, size: int | None = -1) -> bytes:
        with _explained(self.url):
            return self.file.read(-1 if size is None else size)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _explained(self.url):
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, httpx, requests, botocore or Azure."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(error, "status", None) or getattr(response, "status_code", None)
