"""What lies behind URLs that fsspec knows: all that is read from there, and what goes wrong with it, passes here."""

import errno
import io
import os
import re
from contextlib import contextmanager

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GONE = (404, 410)


def is_url(path: str) -> bool:
    return _URL.match(path) is not None


def read_url(url: str) -> bytes:
    """All that lies behind a URL.

    Raises:
        FileNotFoundError: a server said that there is no such file.
        OSError: it cannot be told, or not be read; with an `errno`.
        ValueError, ImportError: fsspec does not know such URLs, or lacks a package for them.
    """
    with _explained(url):
        return _content(url)


def open_url(url: str) -> io.RawIOBase:
    """A binary file that can seek; its methods raise what [`read_url`] raises."""
    from fsspec.core import url_to_fs

    with _explained(url):
        file_system, path = url_to_fs(url)
        return _RemoteFile(url, file_system.open(path, "rb"))


def fetch(path: str) -> str | bytes:
    """The content behind a URL, or a chain of them; the path of a file on this machine as it is.

    Raises:
        ValueError: it cannot be fetched, for whatever reason.
    """
    if "://" not in path or os.path.exists(path):
        return path
    try:
        return _content(path)
    except Exception as error:  # every protocol has errors of its own
        raise ValueError(
            f"{path} cannot be fetched ({type(error).__name__}: {error}). Check the address and the network, or fetch"
            " it by other means and pass the file."
        ) from error


def is_absent(error: Exception) -> bool:
    """Whether a file behind a URL is proven not to be there.

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
    from fsspec.core import url_to_fs

    file_system, path = url_to_fs(url)
    return file_system.cat_file(path)


@contextmanager
def _explained(url: str):
    """Every error as one that tells whether the file is absent, or what lies between fails: see [`read_url`]."""
    try:
        yield
    except (ImportError, MemoryError, IsADirectoryError):
        raise
    except Exception as error:  # those of HTTP clients are of no kind that they share
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise
        if is_absent(error):
            raise FileNotFoundError(errno.ENOENT, "There is no such file", url) from error
        raise OSError(errno.EIO, f"{url} cannot be read ({type(error).__name__}: {error})") from error


class _RemoteFile(io.RawIOBase):
    def __init__(self, url: str, file):
        super().__init__()
        self.url, self.file = url, file

    def readable(self):
        return True

    def seekable(self):
        return self.file.seekable()

    def read(self, size=-1):
        with _explained(self.url):
            return self.file.read(-1 if size is None else size)

    def readall(self):
        return self.read()

    def readinto(self, buffer):
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset, whence=io.SEEK_SET):
        with _explained(self.url):
            return self.file.seek(offset, whence)

    def tell(self):
        return self.file.tell()

    def close(self):
        if not self.closed:
            self.file.close()
        super().close()


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, httpx, requests, botocore or Azure tells of."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(error, "status", None) or getattr(response, "status_code", None)


__all__ = ["fetch", "is_absent", "is_url", "open_url", "read_url"]
