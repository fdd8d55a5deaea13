"""WebDataset: tars of examples; the members of an example share the first part of their names."""

import itertools
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from mimi_hf.audio import AUDIO_EXTENSIONS
from mimi_hf.utils.files import printable

from .base import DAMAGE, Example, Source, check_shard_size, is_damage
from .locations import Files, open_binary

EXTENSIONS = ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")

_SIDECARS = ("txt", "cls", "json")
_GROUPS_TO_LOOK_AT = 16
_EOFHeaderError: Any = vars(tarfile)["EOFHeaderError"]  # types do not know it


class TarSource(Source):
    """Tars as WebDataset writes them. One tar is one shard, read as a stream; an example is called `tar/key`.

    As in WebDataset, consecutive members with equal paths up to the first dot of the file's name are one example. Its
    audio is the member with the extension of an audio file; `audio_column` chooses among several, for example
    `"mic1.wav"`. Members `.txt`, `.cls` and `.json` become columns of text with these names, if the first 16 examples
    have them; `columns` names others.

    Args:
        files: the tars.
        audio_column: the extension of the member with the audio.
        columns: extensions of members to keep as text.

    Raises:
        TypeError: `columns` is no list.
    """

    kind = "webdataset"

    def __init__(self, files: Files, audio_column: str | None = None, columns: list[str] | None = None):
        if isinstance(columns, str):
            raise TypeError(f"columns={columns!r} must be a list of extensions, for example [{columns!r}].")
        self.files = files
        self.audio_column = audio_column and audio_column.lstrip(".").lower()
        self.sidecars = list(columns) if columns is not None else self._find_sidecars()

    def describe(self) -> dict[str, Any]:
        """As [`Source.describe`]."""
        location = self.files.location
        return {"kind": self.kind, "location": location, "audio_column": self.audio_column, "columns": self.sidecars}

    def schema(self) -> pa.Schema:
        """As [`Source.schema`]."""
        return pa.schema([pa.field("source_id" if name == "id" else name, pa.string()) for name in self.sidecars])

    def shards(self, shard_size: int) -> list[dict[str, Any]]:
        """One shard a tar, whatever `shard_size` is."""
        check_shard_size(shard_size)
        return [{"file": name} for name in self.files.select(EXTENSIONS)]

    def read(self, shard: dict[str, Any]) -> Iterator[Example]:
        """As [`Source.read`]."""
        name = shard["file"]
        seen: dict[str, int] = {}
        try:
            for key, members in _groups(self.files.path(name), self._is_wanted):
                seen[key] = seen.get(key, 0) + 1
                again = f"#{seen[key]}" if seen[key] > 1 else ""
                yield self._example(f"{printable(name)}/{printable(key)}{again}", members)
        except DAMAGE as error:
            if not is_damage(error):
                raise
            given = sum(seen.values())
            problem = f"The tar is damaged or cut short after {given} examples ({error}). Fetch or pack it again."
            yield Example(f"{printable(name)}:rest", None, error=problem)

    def _find_sidecars(self) -> list[str]:
        for name in self.files.select(EXTENSIONS):
            found: set[str] = set()  # extensions
            try:
                for _, members in itertools.islice(_groups(self.files.path(name), _nothing), _GROUPS_TO_LOOK_AT):
                    found.update(end for end, _ in members)
            except DAMAGE as error:
                if not is_damage(error):
                    raise
            if found:
                return [end for end in _SIDECARS if end in found]
        return []

    def _is_wanted(self, end: str) -> bool:
        return end in self.sidecars or end == self.audio_column or _is_audio(end)

    def _example(self, identifier: str, members: list[tuple[str, bytes | None]]) -> Example:
        try:
            audio = self._audio(members)
            columns = {}
            for field, end in zip(self.schema(), self.sidecars, strict=True):
                content = _only(members, end)
                columns[field.name] = None if content is None else content.decode()
            return Example(identifier, audio, columns)
        except UnicodeDecodeError as error:
            return Example(identifier, None, error=f"The text beside the audio is not UTF-8 ({error}).")
        except ValueError as error:
            return Example(identifier, None, error=str(error))

    def _audio(self, members: list[tuple[str, bytes | None]]) -> bytes:
        ends = dict.fromkeys(end for end, _ in members)
        candidates = [
            end for end in ends if end == (self.audio_column or end) and (self.audio_column or _is_audio(end))
        ]
        if not candidates:
            wanted = self.audio_column or "that ends like an audio file"
            raise ValueError(f"There is no member {wanted}, but only: {', '.join(ends)}.")
        if len(candidates) > 1:
            raise ValueError(f"There are several members of audio: {', '.join(candidates)}. Name one as audio column.")
        audio = _only(members, candidates[0])
        if audio is None:
            raise ValueError(f"The member {candidates[0]} is a link, not a file. Pack the tar with --hard-dereference.")
        return audio


class _StrictHeader(tarfile.TarInfo):
    """Python takes a damaged header, or a missing end, for the end of the tar. Here they are errors."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except _EOFHeaderError:
            raise  # the proper end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _groups(path: str, is_wanted) -> Iterator[tuple[str, list[tuple[str, bytes | None]]]]:
    """Key and members of each example; members have content if `is_wanted(extension)`, else `None`.

    Damage is raised after the examples before it. The example with the damage is given if its members are complete.
    """
    key, members = "", []
    damage: Exception | None = None
    with open_binary(path) as file:
        try:
            for name, end, read in _members(file):
                if name != key and members:
                    yield key, members
                    members = []
                key = name
                rest, members = members, []
                content = read() if is_wanted(end) else None
                members = [*rest, (end, content)]
        except DAMAGE as error:
            damage = error
        if members:
            yield key, members
    if damage:
        raise damage


def _members(file) -> Iterator[tuple[str, str, Callable[[], bytes | None]]]:
    """Key, extension and reader of the content of each member; a link has no content."""
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictHeader) as opened:
        tar: Any = opened  # types do not know its members
        while (member := tar.next()) is not None:
            tar.members.clear()  # of those that were read: they would only take memory
            folder, base = posixpath.split(posixpath.normpath(member.name))
            stem, dot, end = base.partition(".")
            hidden = not stem or any(part.startswith((".", "__MACOSX")) for part in folder.split("/"))
            if hidden or not dot or not (member.isreg() or member.issym() or member.islnk()):
                continue
            yield (
                posixpath.join(folder, stem),
                end.lower(),
                tar.extractfile(member).read if member.isreg() else _nothing,
            )


def _only(members: list[tuple[str, bytes | None]], end: str) -> bytes | None:
    contents = [content for name, content in members if name == end]
    if len(contents) > 1:
        raise ValueError(f"There are {len(contents)} members {end!r} of one name. Pack each example by its own name.")
    return contents[0] if contents else None


def _nothing(*_) -> None:
    return None


def _is_audio(end: str) -> bool:
    return end.rpartition(".")[2] in AUDIO_EXTENSIONS
