"""A manifest: a file with one line for each recording."""

import hashlib
import io
import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from mimi_hf.utils.files import printable

from .base import Example, Source, as_audio, check_shard_size
from .columns import Columns, merge, type_of
from .locations import Files, extension, open_binary
from .records import DIALECTS, Record, csv_header, csv_records, json_records, parse_text

EXTENSIONS = ("jsonl", "json", "ndjson", "csv", "tsv")
AUDIO_COLUMNS = ("audio", "audio_filepath", "audio_path", "path", "file", "file_name", "wav")
START_COLUMNS = ("offset", "start")
# Seconds, about 30 000 years: samples can be counted at any rate.
_LONGEST = 1e12


class ManifestSource(Source):
    """JSON Lines, CSV or TSV, one example a line.

    The audio is a path, relative to the manifest's folder, or a URL. `offset` (or `start`) and `duration`, in seconds,
    name a part of it. Each other column has one type, found by reading the whole file; values of different types become
    text. The column `id` names the examples if its values are unique; otherwise their rows do, as `manifest.jsonl:0`,
    `manifest.jsonl:1` and so on.
    """

    kind = "manifest"

    def __init__(self, files: Files, audio_column: str | None = None, columns: list[str] | None = None):
        names = files.select(EXTENSIONS)
        if len(names) > 1:
            raise ValueError(f"{files.location!r} holds several manifests: {', '.join(names)}. Give one of them.")
        self.location, self.root, self.name = files.location, files.root, names[0]
        self.path = files.path(self.name)
        with self._open() as file:
            self.size = file.seek(0, io.SEEK_END)
            try:
                present = self._scan(file)
            except ValueError as error:
                raise ValueError(f"{self.location!r} is no manifest that can be used. {error}") from error
        self.audio_column = self._choose_audio(present.names, audio_column)
        self.start_column = next((name for name in START_COLUMNS if name in present.names), None)
        spent = [self.audio_column, self.start_column, "duration", "id" if self.has_ids else None]
        self.columns = Columns.choose(present, columns, spent, self.location)
        self.texts = {name for name, field in self.columns.fields.items() if pa.types.is_string(field.type)}

    def describe(self) -> dict[str, Any]:
        """As [`Source.describe`]."""
        columns = list(self.columns.fields)
        described = {"kind": self.kind, "location": self.location, "audio_column": self.audio_column}
        return {**described, "columns": columns, "size": self.size}

    def schema(self) -> pa.Schema:
        """As [`Source.schema`]."""
        return self.columns.schema

    def shards(self, shard_size: int) -> list[dict[str, Any]]:
        """As [`Source.shards`]."""
        size = check_shard_size(shard_size)
        shards: list[dict[str, Any]] = []
        with self._open() as file:
            for row, (begin, _) in enumerate(self._records(file)):
                if row % size == 0:
                    shards.append({"begin": begin, "row": row, "rows": 0})
                shards[-1]["rows"] += 1
        return shards

    def read(self, shard: dict[str, Any]) -> Iterator[Example]:
        """As [`Source.read`]."""
        last = shard["row"] + shard["rows"] - 1
        with self._open() as file:
            for row, (_, record) in enumerate(self._records(file, shard["begin"]), shard["row"]):
                yield self._example(row, record)
                if row == last:
                    return

    def _example(self, row: int, record: dict | str) -> Example:
        if isinstance(record, str):
            return Example(self._fallback_id(row), None, error=record)
        name = str(record["id"]) if self.has_ids else self._fallback_id(row)
        columns: dict = {}
        try:
            columns = self.columns.of(self._typed(record))
            start = _seconds(record, self.start_column) or 0.0
            duration = _seconds(record, "duration")
            if duration == 0:
                raise ValueError("The duration must be positive, but is 0. Leave it out for all of the audio.")
            return Example(name, as_audio(record.get(self.audio_column), self.root), columns, start, duration)
        except (ValueError, OverflowError, RecursionError) as error:
            return Example(name, None, columns, error=str(error))

    def _fallback_id(self, row: int) -> str:
        return f"{printable(self.name)}:{row}"

    def _scan(self, file) -> pa.Schema:
        """Find the types of all columns, the header, and whether ids are unique."""
        dialect = DIALECTS.get(extension(self.name))
        self.header, self.first_row = csv_header(file, dialect) if dialect else (None, 0)
        unknown = pa.null()
        types = dict.fromkeys(self.header or (), unknown)
        ids, problem, good = array("Q"), "It has no rows.", 0
        for row, (_, record) in enumerate(self._records(file)):
            if isinstance(record, str):
                problem = f"Row {row}: {record}" if not good else problem
                ids.append(_digest(self._fallback_id(row)))
                continue
            good += 1
            for name, value in record.items():
                kind = type_of(parse_text(value) if self.header else value)
                types[name] = merge(types.get(name, unknown), kind)
            name = record.get("id")
            ids.append(_digest(str(name)) if isinstance(name, (str, int)) and name != "" else 0)
        if not good:
            raise ValueError(f"{problem} One JSON object a line is needed, or CSV or TSV with the columns' names.")
        self.has_ids = "id" in types and 0 not in ids and len(np.unique(np.asarray(ids))) == len(ids)
        return pa.schema(types)

    def _choose_audio(self, names: list[str], wanted: str | None) -> str:
        candidates = AUDIO_COLUMNS if wanted is None else (wanted,)
        for name in candidates:
            if name in names:
                return name
        raise ValueError(
            f"{self.location!r} has no column {' or '.join(map(repr, candidates))} for the audio; it has"
            f" {', '.join(names)}. Name the right one as audio column."
        )

    def _typed(self, record: dict) -> dict:
        """Parse the text of a CSV file in columns that hold other types."""
        if not self.header:
            return record
        return {name: value if name in self.texts else parse_text(value) for name, value in record.items()}

    def _records(self, file, begin: int | None = None) -> Iterator[Record]:
        if self.header is None:
            return json_records(file, begin or 0)
        dialect = DIALECTS[extension(self.name)]
        return csv_records(file, self.first_row if begin is None else begin, self.header, dialect)

    @contextmanager
    def _open(self):
        # fsspec's files are slow line by line.
        with open_binary(self.path) as file, io.BufferedReader(file, 2**20) as buffered:
            yield buffered


def _seconds(record: dict, column: str | None) -> float | None:
    value = record.get(column)
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 <= seconds < _LONGEST:
        raise ValueError(f"{column}={value!r} must be a number of seconds, at least 0 and below {_LONGEST:.0e}.")
    return seconds


def _digest(name: str) -> int:
    """A number for a name: it takes less memory than the name, and in practice no two are equal."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
