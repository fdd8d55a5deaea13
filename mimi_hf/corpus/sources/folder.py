"""A folder of audio files."""

from collections.abc import Iterator

import pyarrow as pa

from mimi_hf.utils.files import printable

from .base import AUDIO_EXTENSIONS, Example, Source, check_shard_size
from .locations import Files


class FolderSource(Source):
    """All audio files in a folder and the folders in it, one example each: its id is its path in the folder.

    A file is an example by its extension; whether it can be read is found out where that is done.
    """

    kind = "folder"

    def __init__(self, files: Files):
        self.files = files
        files.select(AUDIO_EXTENSIONS)  # refuses a folder without any

    def describe(self) -> dict:
        return {"kind": self.kind, "location": self.files.location}

    def shards(self, shard_size: int) -> list[dict]:
        size = check_shard_size(shard_size)
        names = self.files.select(AUDIO_EXTENSIONS)
        return [{"files": names[start : start + size]} for start in range(0, len(names), size)]

    def read(self, shard: dict) -> Iterator[Example]:
        for name in shard["files"]:
            yield Example(printable(name), self.files.path(name))

    def schema(self) -> pa.Schema:
        return pa.schema([])
