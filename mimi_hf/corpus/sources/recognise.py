"""Opening the source at a location, of any kind."""

import os
from collections import Counter

from mimi_hf.audio import AUDIO_EXTENSIONS

from . import hub, manifest, parquet, webdataset
from .base import Source
from .folder import FolderSource
from .hub import HubSource
from .locations import Files, extension, is_url
from .manifest import ManifestSource
from .parquet import ParquetSource
from .webdataset import TarSource

_EXTENSIONS = {
    "folder": AUDIO_EXTENSIONS,
    "parquet": parquet.EXTENSIONS,
    "webdataset": webdataset.EXTENSIONS,
    "manifest": manifest.EXTENSIONS,
}
_KIND_OF = {end: kind for kind, ends in _EXTENSIONS.items() for end in ends}
KINDS = (*_EXTENSIONS, "hub")


def open_source(
    location: str | os.PathLike[str],
    kind: str | None = None,
    split: str | None = None,
    config: str | None = None,
    audio_column: str | None = None,
    columns: list[str] | None = None,
    revision: str | None = None,
    leave_out: str | None = None,
) -> Source:
    """Open a corpus of recordings.

    Args:
        location: audio files (`folder`), JSON Lines, CSV or TSV (`manifest`), parquet files (`parquet`) or tars
            (`webdataset`): a file, a folder or a pattern such as `data-{000..012}.tar`, on this machine or behind a
            URL that fsspec knows. Or the id of a data set of the Hub (`hub`).
        kind: one of these; detected by default.
        split, config, revision: of a data set of the Hub.
        audio_column: the column with the audio; for tars, the extension of the member.
        columns: names of other columns to keep; all by default.
        leave_out: a folder whose files are ignored if it lies in `location`: the one to write to.

    Raises:
        FileNotFoundError: there is nothing at `location`.
        ValueError, TypeError: its kind cannot be detected, it is empty, or an option does not fit.

    Example:
        >>> source = open_source("recordings/")  # doctest: +SKIP
        >>> [example.id for shard in source.shards(1000) for example in source.read(shard)]  # doctest: +SKIP
        ['a.wav', 'more/b.flac']
    """
    location = os.fsdecode(location).removeprefix("file://")
    if kind not in (None, *KINDS):
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}.")
    files = None if kind == "hub" or hub.HUB_URL.fullmatch(location) else _find_files(location, kind, leave_out)
    if files is None:
        return HubSource(location, split, config, audio_column, columns, revision)
    kind = kind or _recognise(files)
    for name, value in {"split": split, "config": config, "revision": revision}.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} is for data sets of the Hub, but {location!r} is of the kind {kind!r}.")
    if kind == "folder":
        for name, value in {"audio_column": audio_column, "columns": columns}.items():
            if value is not None:
                raise ValueError(f"{name}={value!r} does not fit {location!r}: a folder of audio has no columns.")
        return FolderSource(files)
    return {"manifest": ManifestSource, "parquet": ParquetSource, "webdataset": TarSource}[kind](
        files, audio_column, columns
    )


def _find_files(location: str, kind: str | None, leave_out: str | None) -> Files | None:
    """The files there; `None` if there are none, and the location may be the id of a data set on the Hub."""
    try:
        return Files(location, leave_out)
    except FileNotFoundError:
        may_be_hub = kind is None and hub.HUB_ID.fullmatch(location) and extension(location) not in _KIND_OF
        if may_be_hub and not is_url(location):
            return None
        raise


def _recognise(files: Files) -> str:
    """The kind of most of the files.

    Raises:
        ValueError: there are several kinds, or none.
    """
    counts = Counter(_KIND_OF[extension(name)] for name in files.names if extension(name) in _KIND_OF)
    beside = {"manifest"} if len(counts) > 1 else set()  # lists, logs and cards lie beside data of every kind
    kinds = [kind for kind in counts if kind not in beside]
    if len(kinds) == 1:
        return kinds[0]
    what = ", ".join(f"{number} files of the kind {kind!r}" for kind, number in counts.items())
    raise ValueError(
        f"It cannot be told what {files.location!r} is: it has {what or 'no audio, manifests, parquet files or tars'}."
        + (" Name the kind that is meant." if what else " Give another place.")
    )
