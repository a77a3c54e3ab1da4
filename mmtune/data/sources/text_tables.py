"""Rows of tables as people really write them: byte-order marks, other encodings, quoted newlines, stray quotes."""

import codecs
import csv
import hashlib
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mmtune.errors import DataError

MAX_LINES = 1000
"""A quoted cell may span this many lines; one that spans more is taken for a quote that nobody closed."""
csv.field_size_limit(2**31 - 1)


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are no UTF-8 read as Windows-1252, the usual culprit; the rest of the file stays UTF-8."""
    assert isinstance(error, UnicodeDecodeError)
    bad = error.object[error.start : error.end]
    try:
        return bad.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return bad.decode("latin-1"), error.end


codecs.register_error("mmtune_cp1252", _as_cp1252)


def open_text(path: Path) -> TextIO:
    """A file of characters in UTF-8 (with or without a mark), in UTF-16 with a mark, or in Windows-1252."""
    with open(path, "rb") as f:
        head = f.read(2)
    encoding = "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    errors = "replace" if encoding == "utf-16" else "mmtune_cp1252"
    return open(path, encoding=encoding, errors=errors, newline="")


def digest(path: Path) -> tuple[str, int]:
    """(sha256, number of line ends) of a file in one pass."""
    sha, lines = hashlib.sha256(), 0
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            sha.update(block)
            lines += block.count(b"\n")
    return sha.hexdigest(), lines


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with open_text(path) as f:
        head = f.readline()
    return "," if "," in head else max(";\t|", key=head.count) if any(c in head for c in ";\t|") else ","


class Table:
    """A CSV or TSV file. Iterating gives each record in order: a dict by column, or the reason it cannot be one."""

    def __init__(self, path: Path):
        self.path, self.delimiter = path, _delimiter(path)
        with open_text(path) as f:
            header = next(_records(f, self.delimiter, None), None)
        if header is None or isinstance(header[1], str):
            raise DataError(f"{path}: {'empty' if header is None else header[1]}; the first line must name the columns")
        self.columns = [c.strip() for c in header[1]]
        doubles = sorted({c for c in self.columns if c and self.columns.count(c) > 1})
        if doubles:
            raise DataError(f"{path}: the column {doubles[0]!r} is there twice; rename one")

    def __iter__(self) -> Iterator[dict[str, Any] | str]:
        with open_text(self.path) as f:
            records = _records(f, self.delimiter, len(self.columns))
            next(records)
            for line, fields in records:
                if isinstance(fields, str):
                    yield f"line {line}: {fields}"
                else:
                    yield {c: v for c, v in zip(self.columns, fields, strict=True) if c}


def _records(lines: Iterator[str], delimiter: str, width: int | None) -> Iterator[tuple[int, list[str] | str]]:
    """(line number, fields or the reason why not) of each record that is not blank.

    A record that goes wrong costs its first line only: the lines after it, which a stray quote would have swallowed,
    are read again as records of their own.
    """
    again: deque[str] = deque()
    number = 0
    while True:
        taken: list[str] = []

        def feed(taken: list[str] = taken) -> Iterator[str]:
            while len(taken) < MAX_LINES:
                line = again.popleft() if again else next(lines, None)
                if line is None:
                    return
                taken.append(line)
                yield line

        try:
            fields: list[str] | str = next(csv.reader(feed(), delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as e:
            fields = "a quote that is never closed" if "end of data" in str(e) else f"bad quoting ({e})"
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
            again.extendleft(reversed(taken[1:]))
            taken = taken[:1]
            plain = taken[0].rstrip("\r\n").split("\t")
            if delimiter == "\t" and len(plain) == width:  # many a TSV knows no quoting: a quote there is a quote
                fields = plain
        number += len(taken)
        yield first, fields


def json_rows(path: Path) -> Iterator[dict[str, Any] | str]:
    """The rows of a JSONL file: an object, or the reason it is none. Blank lines are no rows."""
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
