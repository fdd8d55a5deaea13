"""Where a corpus is written: a local folder, or a place that fsspec reaches (s3://, hf://, memory:// …).

Every file there is complete: it is written aside and takes its place in one step.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from mimi_hf.utils.remote import connect

# File systems that show a file only when its upload is complete, and have no cheap rename. Elsewhere files are
# uploaded under another name and renamed.
_SHOW_WHOLE_FILES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss"}
_ASIDE = ".unfinished"

Made = TypeVar("Made")


class Output:
    """A folder of complete files, named by relative posix paths. It can be pickled.

    Args:
        location: a path, or a URL that fsspec knows.

    Raises:
        ValueError, ImportError: as [`mimi_hf.utils.remote.connect`].
    """

    def __init__(self, location: str):
        # Absolute, for workers that start in another folder.
        self.location = location if "://" in location else os.path.abspath(location)
        self._connect()

    def _connect(self) -> None:
        from fsspec.implementations.local import LocalFileSystem

        if "://" in self.location:
            self._fs, self._root = connect(self.location)
        else:  # not through fsspec, for which "::" in a path has a meaning
            self._fs, self._root = LocalFileSystem(), self.location
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self.is_local = "file" in protocols
        self._shows_whole_files = bool(_SHOW_WHOLE_FILES.intersection(protocols))

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def path(self, name: str) -> str:
        """The path of `name` in its file system."""
        return f"{str(self._root).rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is a file `name` now; nothing is cached."""
        self._fs.invalidate_cache()
        return self._fs.exists(self.path(name))

    def is_file(self) -> bool:
        """Whether the location is a file, not a folder."""
        return self._fs.isfile(self._root)

    def names(self, folder: str = "") -> set[str]:
        """List the names in a folder now; none if there is no such folder."""
        self._fs.invalidate_cache()
        try:
            return {str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(self.path(folder), detail=False)}
        except FileNotFoundError:
            return set()

    def read(self, name: str) -> bytes:
        """Read the content of `name`."""
        content: Any = self._fs.cat_file(self.path(name))
        return content

    def read_json(self, name: str) -> Any:
        """Read `name` and parse it."""
        return json.loads(self.read(name))

    def write(self, name: str, content: bytes) -> None:
        """Write `name`, or replace it."""
        with self.writing(name) as path:
            path.write_bytes(content)

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` as JSON: the same bytes for the same content."""
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        self.write(name, text.encode("utf-8", "backslashreplace"))  # for lone surrogates, of names that are not UTF-8

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a local path to write to, which becomes `name` at the end. After an error it is removed."""
        if self.is_local:
            aside = self._local_aside(name)
            try:
                yield aside
                with open(aside, "rb") as file:  # if the power fails, no name may be on the disk without its content
                    os.fsync(file.fileno())
                Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
                aside.replace(self.path(name))
            finally:
                aside.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, name.rsplit("/", 1)[-1])
            yield local
            self._upload(local, name)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give a local folder for unfinished files, in the output if that is local. It is removed at the end."""
        place = self.path(f"{_ASIDE}/shards")
        if self.is_local:
            aside = _make_in(place, lambda: tempfile.TemporaryDirectory(dir=place))
        else:
            aside = tempfile.TemporaryDirectory()
        with aside as folder:
            yield Path(folder)

    def remove_unfinished(self, alone: bool) -> None:
        """Remove the unfinished files of killed runs, when all shards are done.

        Args:
            alone: no other process writes here. Otherwise one may be joining the shards now, and its files stay.
        """
        folders = self.names(_ASIDE)
        try:
            if alone and (folders or self.is_local):
                self._fs.rm(self.path(_ASIDE), recursive=True)
                return
            for folder in folders:
                if self._fs.isdir(self.path(f"{_ASIDE}/{folder}")):
                    self._fs.rm(self.path(f"{_ASIDE}/{folder}"), recursive=True)
            if self.is_local:
                Path(self.path(_ASIDE)).rmdir()
        except OSError:
            pass  # it is not there, or in use

    def _aside(self, name: str) -> str:
        """Another name for `name` while it is written: files of shards lie in folders, others do not."""
        folder, _, last = name.rpartition("/")
        return "/".join(filter(None, (_ASIDE, folder.split("/")[0], f"{uuid.uuid4().hex[:12]}-{last}")))

    def _local_aside(self, name: str) -> Path:
        """Make an empty file to write to. As its folder is not empty, no other process removes it."""
        aside = Path(self.path(self._aside(name)))
        _make_in(aside.parent, lambda: aside.touch(exist_ok=False))
        return aside

    def _upload(self, local: Path, name: str) -> None:
        self._fs.makedirs(self.path(name).rsplit("/", 1)[0], exist_ok=True)
        if self._shows_whole_files:
            self._fs.put_file(str(local), self.path(name))
            return
        aside = self.path(self._aside(name))
        self._fs.makedirs(aside.rsplit("/", 1)[0], exist_ok=True)
        self._fs.put_file(str(local), aside)
        with suppress(FileNotFoundError):
            self._fs.rm_file(self.path(name))  # some file systems do not rename onto a file
        self._fs.mv(aside, self.path(name))


def _make_in(folder: str | Path, make: Callable[[], Made]) -> Made:
    """Call `make`, which makes something in a folder that other processes remove whenever it is empty."""
    attempts = 100
    while True:
        attempts -= 1
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            return make()
        except (FileNotFoundError, FileExistsError):  # removed before `make`, or while `mkdir` looked at it
            if not attempts:
                raise
