"""Rows of CSV, TSV and JSONL files as people write them: byte-order marks, other encodings, quoted newlines, stray quotes."""

import codecs
import csv
import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from mmtune.errors import DataError

MAX_LINES = 1000
"""A quoted cell may span this many lines; one that spans more is taken for a quote that was never closed."""
MAX_CELL = 2**31 - 1
"""Characters of a cell, where Python's csv module by default allows 131,072."""
_CSV_LIMIT = threading.Lock()


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as Windows-1252, the usual other encoding; the rest of the file stays UTF-8."""
    assert isinstance(error, UnicodeDecodeError)
    invalid = error.object[error.start : error.end]
    try:
        return invalid.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return invalid.decode("latin-1"), error.end


codecs.register_error("mmtune_cp1252", _as_cp1252)  # process-wide, but under a name of our own: nobody else's decoding changes


def open_text(path: Path) -> TextIO:
    """Open a text file in UTF-8 (with or without a byte-order mark), in UTF-16 with one, or in Windows-1252."""
    with open(path, "rb") as f:
        head = f.read(2)
    encoding = "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    errors = "replace" if encoding == "utf-16" else "mmtune_cp1252"
    return open(path, encoding=encoding, errors=errors, newline="")


def file_digest(path: Path) -> tuple[str, int]:
    """(sha256, number of newlines) of a file in one pass."""
    sha256, lines = hashlib.sha256(), 0
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            sha256.update(block)
            lines += block.count(b"\n")
    return sha256.hexdigest(), lines


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with open_text(path) as f:
        head = f.readline()
    return "," if "," in head else max(";\t|", key=head.count) if any(c in head for c in ";\t|") else ","


class CsvTable:
    """A CSV or TSV file. Iterating gives each record in order: {column: cell}, or the reason why it cannot be one."""

    def __init__(self, path: Path):
        self.path, self.delimiter = path, _delimiter(path)
        with open_text(path) as f:
            header = next(_records(f, self.delimiter, None), None)
        if header is None or isinstance(header[1], str):
            raise DataError(f"{path}: {'empty' if header is None else header[1]}; the first line must name the columns")
        self.columns = [c.strip() for c in header[1]]
        repeated = sorted({c for c in self.columns if c and self.columns.count(c) > 1})
        if repeated:
            raise DataError(f"{path}: the column {repeated[0]!r} is there twice; rename one")

    def __iter__(self) -> Iterator[dict[str, object] | str]:
        with open_text(self.path) as f:
            records = _records(f, self.delimiter, len(self.columns))
            next(records)
            for line, fields in records:
                if isinstance(fields, str):
                    yield f"line {line}: {fields}"
                else:
                    yield {c: v for c, v in zip(self.columns, fields, strict=True) if c}


class _Lines:
    """The lines of a file, some of which may be given back to be read again."""

    def __init__(self, lines: Iterator[str]):
        self._lines, self._returned = lines, deque[str]()

    def __next__(self) -> str:
        return self._returned.popleft() if self._returned else next(self._lines)

    def give_back(self, lines: Sequence[str]) -> None:
        """Read these lines next, in order."""
        self._returned.extendleft(reversed(lines))


def _parse_record(lines: _Lines, delimiter: str) -> tuple[list[str], list[str] | str]:
    """(lines taken, fields or the reason why not) of the next record; no lines at the end of the file."""
    taken: list[str] = []

    def feed() -> Iterator[str]:
        while len(taken) < MAX_LINES:
            try:
                taken.append(next(lines))
            except StopIteration:
                return
            yield taken[-1]

    def parse() -> list[str]:
        return next(csv.reader(feed(), delimiter=delimiter, strict=True), [])

    try:
        try:
            return taken, parse()
        except csv.Error as e:
            if "field limit" not in str(e):
                raise
        lines.give_back(taken)
        taken = []
        # csv's limit is process-wide: raised for this record only, so that nobody else's parsing changes
        with _CSV_LIMIT:
            limit = csv.field_size_limit(MAX_CELL)
            try:
                return taken, parse()
            finally:
                csv.field_size_limit(limit)
    except csv.Error as e:
        return taken, "a quote that is never closed" if "end of data" in str(e) else f"bad quoting ({e})"


def _records(file: Iterator[str], delimiter: str, width: int | None) -> Iterator[tuple[int, list[str] | str]]:
    """(line number, fields or the reason why not) of each record that is not blank.

    A malformed record costs its first line only: the lines after it, which a stray quote would have swallowed, are parsed again as
    records of their own.
    """
    lines, number = _Lines(file), 0
    while True:
        taken, fields = _parse_record(lines, delimiter)
        if not taken:
            return
        first = number + 1
        if isinstance(fields, list) and not any(f.strip() for f in fields) and len(fields) <= 1:
            number += len(taken)
            continue
        if isinstance(fields, list) and width is not None and len(fields) != width:
            while len(fields) > width and not fields[-1].strip():
                fields.pop()
            if len(fields) != width:
                fields = f"wrong number of cells ({len(fields)}, the header has {width})"
        if isinstance(fields, str):
            lines.give_back(taken[1:])
            taken = taken[:1]
            plain = taken[0].rstrip("\r\n").split("\t")
            if delimiter == "\t" and len(plain) == width:  # many a TSV knows no quoting: a quote there is a quote
                fields = plain
        number += len(taken)
        yield first, fields


def jsonl_rows(path: Path) -> Iterator[dict[str, object] | str]:
    """The rows of a JSONL file: an object, or the reason why a line is none. Blank lines are not rows."""
    with open_text(path) as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                yield f"line {number}: not valid JSON ({e})"
                continue
            yield row if isinstance(row, dict) else f"line {number}: not a JSON object but a {type(row).__name__}"
