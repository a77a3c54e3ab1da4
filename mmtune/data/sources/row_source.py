"""SOURCE -> numbered rows: a CSV, TSV, JSONL or Parquet file, a folder of Parquet files, tars, or a folder of media files.

A row is a dict {column: cell}, or an InvalidRow that says why it cannot be used. Cells are str, bytes, other JSON values,
`{"bytes", "path"}` (as Hugging Face datasets write them in Parquet), or a `Path`: a file that holds the value, relative to `folder`.
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

PARQUET_BATCH = 64
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

Cells: TypeAlias = Mapping[str, object]
"""Column -> cell of one row."""


@dataclass
class InvalidRow:
    """A row that cannot be used, and the file it is about, if there is one."""

    reason: str
    file: str | None = None


@dataclass
class RowSource:
    """An opened SOURCE.

    folder: what relative paths in cells start from; total: the number of rows, exact or an estimate (for progress only); sha256: of
    the source's own bytes, not of the files that it names; untyped: columns whose cells are strings only because the source knows
    no types.
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
        """(row number from 1, cells). Binary columns, which may be the bulk of a file, are read only if among `columns`."""
        return enumerate(self.read(columns), 1)


def open_source(path: str | Path) -> RowSource:
    """Open SOURCE by its suffix. Raises DataError for what is missing, empty, of an unknown kind, or unreadable."""
    path = Path(path)
    if "://" in str(path):
        raise DataError(f"{path}: SOURCE is a local file or folder (its cells may be URLs); fetch it first")
    if path.is_dir():
        # names that start with _ or . are not data to Spark, Hive and Arrow: _SUCCESS, _metadata
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
    for row in jsonl_rows(path):  # any row may be the first with a column: all must be read to know them
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
    """The columns that a file's folders name, as Hive writes them: `category=boots/part-0.parquet` -> {"category": "boots"}."""
    pairs = (part.partition("=") for part in file.parent.parts if "=" in part)
    return {unquote(name): unquote(value) for name, _, value in pairs if value != HIVE_NULL}


def _holds_bytes(kind: "DataType") -> bool:
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind)
