"""A folder of audio files."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mimi_hf.audio import AUDIO_EXTENSIONS
from mimi_hf.utils.files import printable

from .base import Example, Source, check_shard_size
from .locations import Files


class FolderSource(Source):
    """All audio files in a folder and its subfolders, one example each: its id is its path in the folder.

    Files are recognised by their extension. Whether they can be read is found out later.
    """

    kind = "folder"

    def __init__(self, files: Files):
        self.files = files
        files.select(AUDIO_EXTENSIONS)  # refuses a folder without any

    def describe(self) -> dict[str, Any]:
        """As [`Source.describe`]."""
        return {"kind": self.kind, "location": self.files.location}

    def shards(self, shard_size: int) -> list[dict[str, Any]]:
        """As [`Source.shards`]."""
        size = check_shard_size(shard_size)
        names = self.files.select(AUDIO_EXTENSIONS)
        return [{"files": names[start : start + size]} for start in range(0, len(names), size)]

    def read(self, shard: dict[str, Any]) -> Iterator[Example]:
        """As [`Source.read`]."""
        for name in shard["files"]:
            yield Example(printable(name), self.files.path(name))

    def schema(self) -> pa.Schema:
        """As [`Source.schema`]: a folder has no columns."""
        return pa.schema([])
