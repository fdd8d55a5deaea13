"""The rows of JSON Lines, CSV and TSV files, with their positions in the file: reading can start at any row."""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

# The position of the row in the file; the row, or why it is bad.
Record = tuple[int, dict | str]

# TSV knows no quotes: a text that begins with one is that text, as in Common Voice.
DIALECTS = {"csv": {"delimiter": ",", "strict": True}, "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # neither 007, which is a name, nor more than 64 bits
_DECIMAL = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_BOM = b"\xef\xbb\xbf"


def json_records(file: BinaryIO, start: int) -> Iterator[Record]:
    """Read the objects of a JSON Lines file (binary) from byte `start` on; empty lines are skipped."""
    file.seek(start)
    for line in file:
        if line.strip():
            try:
                yield start, _parse_object(line.removeprefix(_BOM) if start == 0 else line)
            except (ValueError, RecursionError) as error:
                yield start, f"The line is no JSON object ({error})."
        start += len(line)


def csv_header(file: BinaryIO, dialect: dict[str, Any]) -> tuple[list[str], int]:
    """Read the names of the columns of a CSV file (binary), and the position of the first row.

    Raises:
        ValueError: the first line does not name columns.
    """
    for _, end, names in _csv_rows(file, 0, None, dialect):
        if isinstance(names, str) or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"The first line must name the columns, each by a name of its own, but it is {names!r}.")
        return names, end
    raise ValueError("It is empty. The first line must name the columns.")


def csv_records(file: BinaryIO, start: int, header: list[str], dialect: dict[str, Any]) -> Iterator[Record]:
    """Read the rows of a CSV file (binary) from byte `start` on; values are text, or `None` if they are empty."""
    for begin, _, fields in _csv_rows(file, start, len(header), dialect):
        if isinstance(fields, str):
            yield begin, fields
        else:
            yield begin, {name: text or None for name, text in zip(header, fields, strict=True)}


def parse_text(text: str | None) -> bool | int | float | str | None:
    """Parse a text of a CSV file.

    Example:
        >>> [parse_text(text) for text in ("-3", "1.5e3", "true", "007", "1_000", "nan")]
        [-3, 1500.0, True, '007', '1_000', 'nan']
    """
    if text is None:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _parse_object(line: bytes) -> dict:
    row = json.loads(line.decode())
    if not isinstance(row, dict):
        raise ValueError(f"it is of type {type(row).__name__}")
    if b"\\u" in line:  # may be half of a pair, which no text may hold
        json.dumps(row, ensure_ascii=False).encode()
    return row


class _Lines:
    """The lines of a file as text, with their ends; bytes that are not UTF-8 become surrogates."""

    def __init__(self, file, start: int):
        self.file = file
        self.ends: list[int] = []
        self.seek(start)

    def seek(self, position: int):
        self.file.seek(position)
        self.position = position

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        if self.position == 0 and line.startswith(_BOM):
            self.position, line = len(_BOM), line.removeprefix(_BOM)
        self.position += len(line)
        self.ends.append(self.position)
        return line.decode("utf-8", "surrogateescape")


def _csv_rows(file, start: int, width: int | None, dialect: dict) -> Iterator[tuple[int, int, list[str] | str]]:
    """Rows with the positions of their begin and end; a bad row is text that says why.

    A quote that is never closed swallows the lines after it. So after a bad row of several lines, reading goes on at
    the second one.
    """
    lines = _Lines(file, start)
    reader = csv.reader(lines, **dialect)
    while True:
        begin, lines.ends = lines.position, []
        try:
            fields = next(reader, None)
            if fields is None:
                return
            problem = _problem(fields, width)
        except csv.Error as error:
            fields, problem = [], f"The line cannot be read ({error}). Check its quotes."
        if problem and len(lines.ends) > 1:
            lines.seek(lines.ends[0])
        if fields or problem:
            yield begin, lines.position, problem or fields


def _problem(fields: list[str], width: int | None) -> str | None:
    if fields and width is not None and len(fields) != width:
        return f"The line has {len(fields)} values, but the first line names {width} columns."
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return "The line is not UTF-8. Convert the file."
    return None
