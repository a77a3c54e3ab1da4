"""Open a source of `mmtune pack` and read its rows.

A source is a CSV, TSV, JSONL, Parquet or tar file, a folder of Parquet or tar files, or a folder of media files.

A row is a mapping column -> cell, or an InvalidRow with the reason why it cannot be used. A cell is one of:
    str, bytes, or another JSON value
    a dict with "bytes" and "path", as Hugging Face datasets write it in Parquet files
    a `Path` of a file that contains the value, relative to `RowSource.folder`
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote

from mmtune import modalities
from mmtune.data.sources.media_folder import MediaFolder
from mmtune.data.sources.tar_rows import TarRows, holds_tars
from mmtune.data.sources.text_tables import CsvTable, file_digest, jsonl_rows
from mmtune.errors import DataError

if TYPE_CHECKING:
    from pyarrow import DataType

PARQUET_BATCH = 64  # rows that are in memory at once; small, because a row may contain whole media files
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes a missing value in a folder name

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
    kind: csv, tsv, jsonl, parquet, tar or folder
    folder: folder to which paths in cells are relative
    columns: names of the columns
    total: number of rows, possibly an estimate; used for progress only
    sha256: hash of the source itself, not of the files that its cells refer to
    read: function that yields the rows; see `rows` for its argument
    untyped: columns whose cells are all strings because the source format has no types
    """

    path: Path
    kind: str
    folder: Path
    columns: list[str]
    total: int
    sha256: str
    read: Callable[[set[str]], Iterable[Cells | InvalidRow]]
    untyped: frozenset[str] = frozenset()

    def rows(self, columns: set[str]) -> Iterator[tuple[int, Cells | InvalidRow]]:
        """Yield (row number from 1, cells) for each row.

        columns: binary columns to read; other binary columns are skipped, because they may be very large. All columns that are not
            binary are always read
        """
        return enumerate(self.read(columns), 1)


def open_source(path: str | Path) -> RowSource:
    """Open a source. The kind is recognised by the file extension, or by the files in a folder.

    Raises DataError if the source is missing, empty, unreadable or of an unknown kind.
    """
    path = Path(path)
    if "://" in str(path):
        raise DataError(f"{path}: SOURCE must be a local file or folder (its cells may be URLs); download it first")
    if path.is_dir():
        # Spark, Hive and Arrow ignore files whose names start with _ or ., e.g. _SUCCESS and _metadata
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] not in "._")
        if files and all(p.suffix.lower() in (".parquet", ".pq") for p in files):
            return _open_parquet(path, files, path)
        return _open_tars(path) if holds_tars(path) else _open_folder(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _open_csv(path)
    if suffix in (".jsonl", ".ndjson"):
        return _open_jsonl(path)
    if suffix in (".parquet", ".pq"):
        return _open_parquet(path, [path], path.parent)
    if suffix == ".tar":
        return _open_tars(path)
    raise DataError(f"{path}: not a kind of source; use .csv, .tsv, .jsonl, .parquet, .tar or a folder")


def _open_tars(path: Path) -> RowSource:
    tars = TarRows(path)
    folder = path if path.is_dir() else path.parent
    return RowSource(path, "tar", folder, tars.columns, tars.total, tars.sha256, tars.read)


def _open_csv(path: Path) -> RowSource:
    table = CsvTable(path)
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


def _open_folder(path: Path) -> RowSource:
    folder = MediaFolder(path)
    columns = [*modalities.names(), "id", "group"]
    rows: list[Cells | InvalidRow] = [r if isinstance(r, dict) else InvalidRow(r[1], r[0]) for r in folder.rows]
    return RowSource(path, "folder", path, columns, len(rows), folder.sha256, lambda _: rows)


def _open_parquet(path: Path, files: list[Path], folder: Path) -> RowSource:
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    partitions = {file: _hive_partitions(file.relative_to(folder)) for file in files}
    types: dict[str, DataType] = {}
    total = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as f:
                types |= {c.name: c.type for c in f.schema_arrow}
                total += f.metadata.num_rows
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{file}: not a readable Parquet file ({str(e).splitlines()[0]})") from None
    digests = [file_digest(f)[0] for f in files]
    sha256 = digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def read(wanted: set[str]) -> Iterator[Cells]:
        names = [c for c, t in types.items() if c in wanted or not _holds_bytes(t)]
        for file in files:
            try:
                with pq.ParquetFile(file) as f:
                    for batch in f.iter_batches(PARQUET_BATCH, columns=[n for n in names if n in f.schema_arrow.names]):
                        yield from ({**partitions[file], **row} for row in batch.to_pylist())
            except (pa.ArrowException, OSError) as e:
                raise DataError(f"{file}: damaged ({str(e).splitlines()[0]}); write it again") from None

    named_by_folders = {c for of_file in partitions.values() for c in of_file}
    columns = list(dict.fromkeys([*types, *sorted(named_by_folders)]))
    return RowSource(path, "parquet", folder, columns, total, sha256, read, frozenset(named_by_folders - types.keys()))


def _hive_partitions(file: Path) -> dict[str, str]:
    """Read columns from the names of a file's folders, as Hive writes them.

    For example, `category=boots/part-0.parquet` gives {"category": "boots"}.
    """
    pairs = (part.partition("=") for part in file.parent.parts if "=" in part)
    return {unquote(name): unquote(value) for name, _, value in pairs if value != HIVE_NULL}


def _holds_bytes(kind: "DataType") -> bool:
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind)
