"""Parquet files with a column of audio."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mimi_hf.utils.files import printable

from .base import DAMAGE, Example, Source, as_audio, check_shard_size, is_damage
from .columns import Columns, unify
from .locations import Files, is_url, open_binary

EXTENSIONS = ("parquet",)

_ROWS_AT_ONCE = 32
# A row group that is larger than this many shards is cut, although each part then reads over those before it.
_LARGE = 4
_THREADS = 16


class ParquetSource(Source):
    """Parquet files. Each row is an example, called `file.parquet:17`.

    The audio is a struct of `bytes` and `path`, as `datasets` writes it, or bytes, or a path, relative to the file. The
    columns are those of all files; if a file lacks one, its values are `None`.

    Args:
        files: the parquet files.
        audio_column: by default the one called `audio`, or the only struct of `bytes` and `path`.
        columns: names of columns to keep; all by default.

    Raises:
        ValueError, TypeError: no file can be read, there is no audio or no row, or an argument does not fit.
    """

    kind = "parquet"
    read_too: tuple[str, ...] = ()  # columns that are neither audio nor kept

    def __init__(self, files: Files, audio_column: str | None = None, columns: list[str] | None = None):
        self.files = files
        schemas = {name: footer.schema for name, footer in self._footers.items() if footer.schema}
        if not schemas:
            name, footer = next(iter(self._footers.items()))
            raise ValueError(f"No parquet file of {files.location!r} can be read. {name}: {footer.error}")
        if not any(footer.groups or footer.error for footer in self._footers.values()):
            raise ValueError(f"{files.location!r} has no rows. Give another place.")
        present = unify(schemas, columns, files.location)
        self.audio_column = self.choose_column(present, audio_column, files.location)
        self.columns = Columns.choose(present, columns, [self.audio_column], files.location)

    def choose_column(self, present: pa.Schema, wanted: str | None, location: str) -> str:
        """The column of audio."""
        return choose_audio(present, wanted, location)

    def identify(self, name: str, row: int, record: dict[str, Any]) -> str:
        """`Example.id` of a row of a file."""
        return _identifier(name, row)

    def make_example(self, identifier: str, value: object, columns: dict[str, Any], root: str) -> Example:
        """The example of a row with the value `value` in the column of audio, in a file in the folder `root`."""
        return Example(identifier, as_audio(value, root), columns)

    def describe(self) -> dict[str, Any]:
        """As [`Source.describe`]."""
        columns = list(self.columns.fields)
        location = self.files.location
        return {"kind": self.kind, "location": location, "audio_column": self.audio_column, "columns": columns}

    def schema(self) -> pa.Schema:
        """As [`Source.schema`]."""
        return self.columns.schema

    def shards(self, shard_size: int) -> list[dict[str, Any]]:
        """As [`Source.shards`]. Row groups are kept whole, except those much larger than a shard."""
        size = check_shard_size(shard_size)
        shards: list[list] = []
        room = 0
        for name, first, stop in self._pieces(size):
            rows = 1 if stop is None else stop - first
            if not shards or 2 * room < rows:  # less than half of it fits in
                shards.append([])
                room = size
            parts = shards[-1]
            if parts and parts[-1][0] == name and parts[-1][2] == first:
                parts[-1][2] = stop
            else:
                parts.append([name, first, stop])
            room -= rows
        return [{"parts": parts} for parts in shards]

    def read(self, shard: dict[str, Any]) -> Iterator[Example]:
        """As [`Source.read`]."""
        for name, first, stop in shard["parts"]:
            yield from self._read_part(name, first, stop)

    def _pieces(self, size: int) -> Iterator[tuple[str, int, int | None]]:
        """Name of the file, first row and the row after the last one, of each part that is not cut further."""
        for name, footer in self._footers.items():
            if footer.error:
                yield name, 0, None  # will be tried again
            first = 0
            for rows in footer.groups:
                parts = -(-rows // size) if rows > _LARGE * size else 1
                for part in range(parts):
                    begin, stop = first + rows * part // parts, first + rows * (part + 1) // parts
                    if stop > begin:
                        yield name, begin, stop
                first += rows

    @cached_property
    def _footers(self) -> dict[str, "_Footer"]:
        names = self.files.select(EXTENSIONS)
        with ThreadPoolExecutor(_THREADS) as threads:
            return dict(zip(names, threads.map(_Footer, map(self.files.path, names)), strict=True))

    def _read_part(self, name: str, first: int, stop: int | None) -> Iterator[Example]:
        try:
            with _open(self.files.path(name)) as file:
                stop = file.metadata.num_rows if stop is None else stop
                begin = 0
                for group in range(file.num_row_groups):
                    end = begin + file.metadata.row_group(group).num_rows
                    if begin < stop and first < end:
                        yield from self._read_group(file, group, begin, range(max(first, begin), min(stop, end)), name)
                    begin = end
        except DAMAGE as error:
            if not is_damage(error):
                raise
            for row in [None] if stop is None else range(first, stop):
                yield Example(_identifier(name, row), None, error=f"The parquet file cannot be opened: {error}")

    def _read_group(self, file, group: int, position: int, rows: range, name: str) -> Iterator[Example]:
        """Some rows of a row group, which begins with row `position`. After damage its other rows are lost."""
        row = rows.start
        try:
            columns = [self.audio_column, *self.columns.fields, *self.read_too]
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                skip = min(row - position, len(batch))
                for record in batch.slice(skip, rows.stop - position - skip).to_pylist():
                    yield self._example(name, row, record)
                    row += 1
                position += len(batch)
                if row == rows.stop:
                    return
        except DAMAGE as error:
            if not is_damage(error):
                raise
            for lost in range(row, rows.stop):
                yield Example(
                    _identifier(name, lost), None, error=f"The row group is damaged from row {row} on: {error}"
                )

    def _example(self, name: str, row: int, record: dict[str, Any]) -> Example:
        identifier, columns = self.identify(name, row, record), {}
        try:
            columns = self.columns.of(record)
            root = self.files.path(name).rpartition("/")[0]
            return self.make_example(identifier, record.get(self.audio_column), columns, root)
        except (ValueError, OverflowError) as error:
            return Example(identifier, None, columns, error=str(error))


class _Footer:
    """The footer of a file: its schema and the rows of each row group, or why it cannot be read."""

    def __init__(self, path: str):
        self.schema: pa.Schema | None = None
        self.groups: list[int] = []
        self.error: str | None = None
        try:
            with _open(path) as file:
                self.schema = file.schema_arrow
                self.groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except DAMAGE as error:
            if not is_damage(error):
                raise
            self.error = str(error)


def choose_audio(present: pa.Schema, wanted: str | None, location: str) -> str:
    """Choose the column of audio: the wanted one, the one called `audio`, or the only struct of bytes and path.

    Raises:
        ValueError: there is no such column, or it is of a type that is no audio.
    """
    structs = [field.name for field in present if _is_file(field.type)]
    if wanted is None:
        wanted = "audio" if "audio" in present.names or len(structs) != 1 else structs[0]
    if wanted not in present.names:
        raise ValueError(
            f"{location!r} has no column {wanted!r} for the audio; it has {', '.join(present.names)}. Name the right"
            " one as audio column."
        )
    kind = present.field(wanted).type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not (_is_file(kind) or any(is_kind(kind) for is_kind in texts)):
        raise ValueError(
            f"Column {wanted!r} of {location!r} is of type {kind}, but audio is a struct of bytes and path, or bytes,"
            " or a path. Name another column."
        )
    return wanted


def _is_file(kind: pa.DataType) -> bool:
    names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    return bool(names & {"bytes", "path"}) or {"array", "sampling_rate"} <= names


def _identifier(name: str, row: int | None) -> str:
    return printable(name) if row is None else f"{printable(name)}:{row}"


@contextmanager
def _open(path: str) -> Iterator[pq.ParquetFile]:
    # With a buffer, pages are read one by one; without it, a whole row group at once.
    with ExitStack() as stack:
        source = stack.enter_context(open_binary(path)) if is_url(path) else path
        yield stack.enter_context(pq.ParquetFile(source, buffer_size=2**20))
