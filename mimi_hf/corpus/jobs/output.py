"""Where a corpus is written: a folder here, or a place that fsspec reaches (s3://, hf://, memory:// …).

What is there is whole: a file is written aside and takes its place in one step.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

# File systems that show a file once its upload is complete, and have no cheap rename. Elsewhere files are uploaded
# under another name and renamed.
_SHOW_WHOLE_FILES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss"}
_ASIDE = ".unfinished"

Made = TypeVar("Made")


class Output:
    """A folder of whole files, named by relative posix paths. It can be pickled.

    Args:
        location: a path, or an URL of fsspec.
    """

    def __init__(self, location: str):
        # The place stays the same for workers that start in another folder.
        self.location = location if "://" in location else os.path.abspath(location)
        self._connect()

    def _connect(self):
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        if "://" in self.location:
            self._fs, self._root = fsspec.core.url_to_fs(self.location)
        else:  # not to fsspec, to which "::" in a path has a meaning
            self._fs, self._root = LocalFileSystem(), self.location
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self.is_local = "file" in protocols
        self._shows_whole_files = bool(_SHOW_WHOLE_FILES.intersection(protocols))

    def __getstate__(self):
        return {"location": self.location}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._connect()

    def path(self, name: str) -> str:
        """Where `name` lies, for messages and for readers of local files."""
        return f"{self._root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is a file `name`, at this moment."""
        self._fs.invalidate_cache()
        return self._fs.exists(self.path(name))

    def is_file(self) -> bool:
        """Whether there is a file in place of the folder."""
        return self._fs.isfile(self._root)

    def names(self, folder: str = "") -> set[str]:
        """The names of all there is in a folder, at this moment; none where there is no such folder."""
        self._fs.invalidate_cache()
        try:
            return {entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self.path(folder), detail=False)}
        except FileNotFoundError:
            return set()

    def read(self, name: str) -> bytes:
        """The content of `name`."""
        return self._fs.cat_file(self.path(name))

    def read_json(self, name: str):
        """The content of `name`, parsed."""
        return json.loads(self.read(name))

    def write(self, name: str, content: bytes):
        """Write `name`; what is there already is replaced."""
        with self.writing(name) as path:
            path.write_bytes(content)

    def write_json(self, name: str, content):
        """Write `content` as JSON, the same bytes for the same content."""
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        self.write(name, text.encode("utf-8", "backslashreplace"))  # lone surrogates, of names that are not UTF-8

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to, which becomes `name` at the end; after an error nothing does."""
        if self.is_local:
            aside = self._local_aside(name)
            try:
                yield aside
                with open(aside, "rb") as file:  # on the disk before the name is, should the power fail
                    os.fsync(file.fileno())
                Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, self.path(name))
            finally:
                aside.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, name.rsplit("/", 1)[-1])
            yield local
            self._upload(local, name)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A local folder for files on their way, on the disk of the output where that is local; gone at the end."""
        place = self.path(f"{_ASIDE}/shards")
        if self.is_local:
            aside = _make_in(place, lambda: tempfile.TemporaryDirectory(dir=place))
        else:
            aside = tempfile.TemporaryDirectory()
        with aside as folder:
            yield Path(folder)

    def remove_unfinished(self, alone: bool):
        """Remove what killed runs left aside, when all shards are done.

        Args:
            alone: nobody else writes here. Otherwise others may be joining the shards at this moment, and what they
                hold aside for that stays.
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
                os.rmdir(self.path(_ASIDE))
        except OSError:
            pass  # it is not there, or somebody uses it

    def _aside(self, name: str) -> str:
        """Another name for `name`: what belongs to shards lies in folders, the rest does not."""
        folder, _, last = name.rpartition("/")
        return "/".join(filter(None, (_ASIDE, folder.split("/")[0], f"{uuid.uuid4().hex[:12]}-{last}")))

    def _local_aside(self, name: str) -> Path:
        """An empty file to write to, whose folder nobody removes therefore."""
        aside = Path(self.path(self._aside(name)))
        _make_in(aside.parent, lambda: aside.touch(exist_ok=False))
        return aside

    def _upload(self, local: Path, name: str):
        self._fs.makedirs(self.path(name).rsplit("/", 1)[0], exist_ok=True)
        if self._shows_whole_files:
            self._fs.put_file(str(local), self.path(name))
            return
        aside = self.path(self._aside(name))
        self._fs.makedirs(aside.rsplit("/", 1)[0], exist_ok=True)
        self._fs.put_file(str(local), aside)
        with suppress(FileNotFoundError):
            self._fs.rm_file(self.path(name))  # some do not rename onto a file
        self._fs.mv(aside, self.path(name))


def _make_in(folder: str | Path, make: Callable[[], Made]) -> Made:
    """What `make` makes in a folder, which other processes remove whenever it is empty."""
    for attempts_left in reversed(range(100)):
        try:
            os.makedirs(folder, exist_ok=True)
            return make()
        except (FileNotFoundError, FileExistsError):  # removed before `make`, or while `makedirs` looked at it
            if not attempts_left:
                raise
