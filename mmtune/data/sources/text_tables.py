"""Read rows of CSV, TSV and JSONL files, including imperfect ones: byte-order marks, other encodings, quoted newlines, stray quotes."""

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
"""Maximum number of lines of a quoted cell. If a cell is longer, its quote is treated as never closed."""
MAX_CELL = 2**31 - 1
"""Maximum number of characters of a cell. The default limit of Python's csv module is 131,072."""
_CSV_LIMIT = threading.Lock()  # held while the process-wide limit of the csv module is changed


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler that decodes bytes which are not UTF-8 as Windows-1252. The rest of the file is decoded as UTF-8."""
    assert isinstance(error, UnicodeDecodeError)
    invalid = error.object[error.start : error.end]
    try:
        return invalid.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return invalid.decode("latin-1"), error.end


codecs.register_error("mmtune_cp1252", _as_cp1252)  # process-wide, but has an effect only where this name is used


def open_text(path: Path, newline: str = "") -> TextIO:
    """Open a text file in UTF-8 (with or without a byte-order mark), UTF-16 (with a byte-order mark) or Windows-1252.

    newline: as in `open`; "" ends lines at "\\n", "\\r" and "\\r\\n" and keeps them, and "\\n" ends them there alone
    """
    with open(path, "rb") as f:
        head = f.read(2)
    encoding = "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    errors = "replace" if encoding == "utf-16" else "mmtune_cp1252"
    return open(path, encoding=encoding, errors=errors, newline=newline)


def file_digest(path: Path) -> tuple[str, int]:
    """Compute the SHA-256 hash and the number of newlines of a file, reading it once."""
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
    """A CSV or TSV file. Iteration yields each row as a dict {column: cell}, or a string with the reason why it is invalid."""

    def __init__(self, path: Path, delimiter: str | None = None):
        """Read the header. delimiter: what separates the cells; None means that it is found out."""
        self.path, self.delimiter = path, delimiter or _delimiter(path)
        with open_text(path) as f:
            header = next(_records(f, self.delimiter, None), None)
        if header is None or isinstance(header[1], str):
            raise DataError(f"{path}: {'empty' if header is None else header[1]}; the first line must name the columns")
        self.columns = [c.strip() for c in header[1]]
        repeated = sorted({c for c in self.columns if c and self.columns.count(c) > 1})
        if repeated:
            raise DataError(f"{path}: there are two columns {repeated[0]!r}; rename one")

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
    """An iterator over the lines of a file that allows lines to be put back and read again."""

    def __init__(self, lines: Iterator[str]):
        self._lines, self._returned = lines, deque[str]()

    def __next__(self) -> str:
        return self._returned.popleft() if self._returned else next(self._lines)

    def put_back(self, lines: Sequence[str]) -> None:
        """Put lines back in front, so that they are the next lines to be read."""
        self._returned.extendleft(reversed(lines))


def _parse_record(lines: _Lines, delimiter: str) -> tuple[list[str], list[str] | str]:
    """Parse the next record (row).

    Returns the lines that were read, and the fields, or the reason why the record is invalid. At the end of the file no lines are
    read.
    """
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
        lines.put_back(taken)
        taken = []
        # the limit of the csv module is process-wide: raise it for this record only, to leave other code unaffected
        with _CSV_LIMIT:
            limit = csv.field_size_limit(MAX_CELL)
            try:
                return taken, parse()
            finally:
                csv.field_size_limit(limit)
    except csv.Error as e:
        return taken, "a quote that is never closed" if "end of data" in str(e) else f"bad quoting ({e})"


def _records(file: Iterator[str], delimiter: str, width: int | None) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line number, fields) for each record that is not blank, with a reason instead of fields for an invalid record.

    Only the first line of an invalid record is skipped. The lines after it are parsed again, because a stray quote may have joined
    them to the record by mistake.

    width: number of columns; None for the header
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
            lines.put_back(taken[1:])
            taken = taken[:1]
            plain = taken[0].rstrip("\r\n").split("\t")
            if delimiter == "\t" and len(plain) == width:  # many TSV files use no quoting, so a quote is an ordinary character
                fields = plain
        number += len(taken)
        yield first, fields


def jsonl_rows(path: Path) -> Iterator[dict[str, object] | str]:
    """Yield the rows of a JSONL file: an object, or a string with the reason why a line is invalid. Blank lines are skipped.

    Lines end at "\\n" alone: other line separators may occur within a document.
    """
    with open_text(path, "\n") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                yield f"line {number}: not valid JSON ({e})"
                continue
            yield row if isinstance(row, dict) else f"line {number}: not a JSON object but a {type(row).__name__}"
