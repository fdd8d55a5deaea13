"""Ids of examples as names of files."""

import hashlib
import re
from urllib.parse import quote

FORMATS = ("flac", "wav", "ogg")

_LONGEST_NAME, _LONGEST_PATH = 200, 600  # bytes; file systems take 255 and 4096 (1024 on macOS)


def file_name(identifier: str) -> str:
    """The id of an example as a relative path, without an extension. No two ids have the same path.

    Example:
        >>> file_name("talks/first one.wav")
        'talks/first one.wav'
        >>> file_name("/../a:b")
        '%/%2E%2E/a%3Ab'
    """
    *folders, last = identifier.split("/")
    # The folder of an id "a.flac/b" would be in the way of the file of the id "a".
    marked = [re.sub(rf"\.({'|'.join(FORMATS)})$", r"%2E\1", _escape(folder)) for folder in folders]
    path = "/".join([*marked, _escape(last)])
    if len(path.encode()) > _LONGEST_PATH:
        return f"%{hashlib.sha256(identifier.encode()).hexdigest()}"
    return path


def _escape(part: str) -> str:
    """A part of an id, between slashes, as a name in a folder."""
    # Escaped is what a file system may forbid or take for something else; letters of all languages stay.
    name = "".join(quote(sign, safe="") if sign in '%:\\*?"<>|' or sign < " " else sign for sign in part)
    if name == "" or name.startswith("."):
        name = name.replace(".", "%2E") or "%"
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.sha256(part.encode()).hexdigest()[:16]
        name = f"{name.encode()[: _LONGEST_NAME - 20].decode(errors='ignore')}%{digest}"
    return name
