"""Parquet files with a column of codes, as `mimi-hf tokenize` writes them."""

import json

import numpy as np
import pyarrow as pa

from mimi_hf.corpus.names import CODES, ID, MANIFEST

from .base import Example
from .columns import Columns
from .hub import HUB_ID
from .locations import Files, is_url, join, read_binary
from .parquet import ParquetSource


class CodesSource(ParquetSource):
    """Parquet files with a column of codes, (K, F) in each row. Examples have `codes` in place of audio.

    Args:
        files: the parquet files.
        codes_column: the column with the codes; by default `audio_codes`.
        columns: names of other columns to keep; all by default.
        codebook_digest: of the codebooks that made the codes, if `mimi-hf tokenize` wrote these files: then the column
            `id` names the examples.

    Raises:
        ValueError, TypeError: there is no column of codes, or no row.
    """

    kind = "codes"

    def __init__(
        self,
        files: Files,
        codes_column: str | None = None,
        columns: list[str] | None = None,
        codebook_digest: str | None = None,
    ):
        super().__init__(files, codes_column, columns)
        self.codebook_digest = codebook_digest
        if codebook_digest:
            self.read_too = (ID,)
            self.columns = Columns({name: field for name, field in self.columns.fields.items() if name != ID})

    def choose_column(self, present: pa.Schema, wanted: str | None, location: str) -> str:
        """The column of codes."""
        name = wanted or CODES
        if name not in present.names:
            raise ValueError(
                f"{location!r} has no column {name!r} of codes; it has {', '.join(present.names)}. Name the right one."
            )
        kind = present.field(name).type
        inner = kind.value_type if _is_list(kind) else None
        if inner is None or not _is_list(inner) or not pa.types.is_integer(inner.value_type):
            raise ValueError(
                f"Column {name!r} of {location!r} is of type {kind}, but codes are lists (codebooks) of lists (frames)"
                " of integers."
            )
        return name

    def identify(self, name: str, row: int, record: dict) -> str:
        """`Example.id` of a row of a file."""
        return record[ID] if self.codebook_digest and record[ID] is not None else super().identify(name, row, record)

    def make_example(self, identifier: str, value: object, columns: dict, root: str) -> Example:
        """The example of a row with the value `value` in the column of codes."""
        rows = [row or () for row in value or ()] if isinstance(value, list) else []
        if not any(rows) or len({len(row) for row in rows}) != 1 or any(None in row for row in rows):
            raise ValueError("There are no codes, or its codebooks have different lengths.")
        return Example(identifier, None, columns, codes=np.asarray(rows, np.int64))


def open_codes(
    location: str, codes_column: str | None = None, columns: list[str] | None = None, leave_out: str | None = None
) -> CodesSource:
    """Open a corpus of codes.

    Args:
        location: a folder of parquet files as `mimi-hf tokenize` makes it, a file, a pattern, a URL, or the id of a
            data set on the Hub that holds parquet files.
        codes_column: the column with the codes; by default `audio_codes`.
        columns: names of other columns to keep; all by default.
        leave_out: a folder whose files are ignored if it lies in `location`: the one to write to.

    Raises:
        FileNotFoundError, ValueError: there is nothing there, or no codes.
    """
    try:
        files = Files(location, leave_out)
    except FileNotFoundError:
        if is_url(location) or not HUB_ID.fullmatch(location):
            raise
        files = Files(f"hf://datasets/{location}")
    digest = _read_codebook_digest(files.root)
    if digest and files.is_folder:  # its data alone: a table of failures may lie beside it
        files = Files(join(files.root, "data"))
    elif files.root.endswith("/data"):
        digest = _read_codebook_digest(files.root.removesuffix("/data"))
    return CodesSource(files, codes_column, columns, digest)


def _read_codebook_digest(folder: str) -> str | None:
    """The codebooks that made the codes in a folder; `None` if `mimi-hf tokenize` did not write it."""
    try:
        manifest = json.loads(read_binary(join(folder, MANIFEST)))
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("task") == "tokenize"
    return manifest.get("codebook_digest") if ours else None


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
