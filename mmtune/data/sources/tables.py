"""Open a table (CSV, TSV, JSONL, Parquet) or the Arrow files of a Hugging Face dataset, and read its rows.

A row is a mapping column -> cell, or an InvalidRow with the reason why it cannot be used. A cell is one of:
    str, bytes, or another JSON value
    a dict with "bytes" and "path", as Hugging Face datasets write it in Parquet files
    a `Path` of a file that contains the value, relative to `RowSource.folder`
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mmtune.data.sources.arrow_files import ArrowFiles
from mmtune.data.sources.text_tables import CsvTable, file_digest, jsonl_rows

ARROW_SUFFIXES = (".parquet", ".pq", ".arrow")
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

Cells: TypeAlias = Mapping[str, object]
"""The cells of one row: column -> cell."""


@dataclass
class InvalidRow:
    """A row that cannot be used.

    reason: why
    file: the file that the reason is about, or None
    """

    reason: str
    file: str | None = None


@dataclass
class RowSource:
    """An opened source.

    path: path of the source
    kind: csv, tsv, jsonl, parquet, arrow, tar, folder or memory
    folder: folder to which paths in cells are relative
    columns: names of the columns
    total: number of rows, possibly an estimate; used for progress only
    sha256: hash of the source itself, not of the files that its cells refer to
    read: function that yields the rows; see `rows` for its argument
    untyped: columns whose cells are all strings because the source format has no types
    splits: whether the column "split" comes from the names of folders and files, e.g. train/ and test/
    """

    path: Path
    kind: str
    folder: Path
    columns: list[str]
    total: int
    sha256: str
    read: Callable[[set[str]], Iterable[Cells | InvalidRow]]
    untyped: frozenset[str] = frozenset()
    splits: bool = False

    def rows(self, columns: set[str]) -> Iterator[tuple[int, Cells | InvalidRow]]:
        """Yield (row number from 1, cells) for each row.

        columns: binary columns to read; other binary columns are skipped, because they may be very large. All columns that are not
            binary are always read
        """
        return enumerate(self.read(columns), 1)


def open_table(path: Path) -> RowSource | None:
    """Open a table file; None if its suffix is not that of a table. Raises DataError if it is empty or unreadable."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return open_csv(path)
    if suffix in (".jsonl", ".ndjson"):
        return _open_jsonl(path)
    return open_arrow(path, [path], path.parent) if suffix in ARROW_SUFFIXES else None


def open_arrow(path: Path, files: list[Path], folder: Path, splits: Mapping[Path, str] | None = None) -> RowSource:
    """Open Parquet or Arrow files as one table.

    path: the source: a file, or the folder of all files
    folder: folder to which paths in cells are relative
    splits: file -> value of the column "split" in its rows
    """
    table = ArrowFiles(files, folder, splits or {})
    kind = "arrow" if files[0].suffix.lower() == ".arrow" else "parquet"
    return RowSource(
        path, kind, folder, table.columns, table.total, table.sha256, table.read, table.untyped, table.adds_split_column
    )


def open_csv(path: Path, delimiter: str | None = None) -> RowSource:
    """Open a CSV or TSV file. delimiter: what separates the cells; None means that it is found out."""
    table = CsvTable(path, delimiter)
    sha256, lines = file_digest(path)
    columns = [c for c in table.columns if c]
    kind, total = path.suffix.lower()[1:], max(lines - 1, 1)
    return RowSource(path, kind, path.parent, columns, total, sha256, lambda _: map(_cells, table), frozenset(columns))


def _open_jsonl(path: Path) -> RowSource:
    columns: dict[str, None] = {}
    count = 0
    for row in jsonl_rows(path):  # all rows must be read, because any row may contain a new column
        columns |= dict.fromkeys(row) if isinstance(row, dict) else {}
        count += 1
    sha256, _ = file_digest(path)
    return RowSource(path, "jsonl", path.parent, list(columns), count, sha256, lambda _: map(_cells, jsonl_rows(path)))


def _cells(row: Cells | str) -> Cells | InvalidRow:
    return InvalidRow(row) if isinstance(row, str) else row
