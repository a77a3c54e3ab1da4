"""SOURCE -> numbered rows: CSV, TSV, JSONL, Parquet, or a folder. A row is a dict of cells, or why it is none.

Cells are str, bytes, other JSON values, `{"bytes", "path"}` (as Hugging Face datasets write them in Parquet), or a
`Path`: a file that holds the value, relative to `folder`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune import modalities
from mmtune.data.sources.folder import Folder
from mmtune.data.sources.text_tables import Table, digest, json_rows
from mmtune.errors import DataError

PARQUET_BATCH = 64


@dataclass
class Bad:
    """A row that cannot be used, and the file it is about, if one."""

    reason: str
    file: str | None = None


@dataclass
class Source:
    """An opened SOURCE. `total` is exact or an estimate (progress only); `sha256`: its own bytes, not the files it names."""

    path: Path
    kind: str
    folder: Path
    columns: list[str]
    total: int
    sha256: str
    _iterate: Callable[[set[str]], Iterable[dict[str, Any] | Bad]]

    def rows(self, wanted: set[str]) -> Iterator[tuple[int, dict[str, Any] | Bad]]:
        """(row number from 1, cells). Columns of bytes are read only if `wanted`: they may be the bulk of a file."""
        return enumerate(self._iterate(wanted), 1)


def open_source(path: str | Path) -> Source:
    """Open SOURCE by its suffix. Raises DataError for what is missing, empty, of an unknown kind, or unreadable."""
    path = Path(path)
    if "://" in str(path):
        raise DataError(f"{path}: SOURCE is a local file or folder (its cells may be URLs); fetch it first")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        if files and all(p.suffix.lower() in (".parquet", ".pq") for p in files):
            return _parquet(path, files, path)
        return _folder(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder")
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        table = Table(path)
        sha, lines = digest(path)
        return Source(
            path, kind[1:], path.parent, [c for c in table.columns if c], max(lines - 1, 1), sha, lambda _: map(_bad, table)
        )
    if kind in (".jsonl", ".ndjson"):
        columns: dict[str, None] = {}
        count = 0
        for row in json_rows(path):  # any row may be the first with a column: all must be seen to know them
            columns |= dict.fromkeys(row) if isinstance(row, dict) else {}
            count += 1
        return Source(path, "jsonl", path.parent, list(columns), count, digest(path)[0], lambda _: map(_bad, json_rows(path)))
    if kind in (".parquet", ".pq"):
        return _parquet(path, [path], path.parent)
    hint = (
        "shards are DATA as they are, no packing needed" if kind == ".tar" else "use .csv, .tsv, .jsonl, .parquet or a folder"
    )
    raise DataError(f"{path}: not a kind of source; {hint}")


def _bad(row: dict[str, Any] | str) -> dict[str, Any] | Bad:
    return Bad(row) if isinstance(row, str) else row


def _folder(path: Path) -> Source:
    folder = Folder(path)
    columns = [*modalities.names(), "id", "group"]
    rows = [r if isinstance(r, dict) else Bad(r[1], r[0]) for r in folder.rows]
    return Source(path, "folder", path, columns, len(rows), folder.sha256, lambda _: rows)


def _parquet(path: Path, files: list[Path], folder: Path) -> Source:
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    total = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as f:
                columns |= {c.name: c.type for c in f.schema_arrow}
                total += f.metadata.num_rows
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{file}: not a readable Parquet file ({str(e).splitlines()[0]})") from None
    sha = hashlib.sha256("".join(digest(f)[0] for f in files).encode()).hexdigest() if len(files) > 1 else digest(files[0])[0]

    def iterate(wanted: set[str]) -> Iterator[dict[str, Any]]:
        names = [c for c, t in columns.items() if c in wanted or not _bulky(t)]
        for file in files:
            try:
                with pq.ParquetFile(file) as f:
                    for batch in f.iter_batches(PARQUET_BATCH, columns=[n for n in names if n in f.schema_arrow.names]):
                        yield from batch.to_pylist()
            except (pa.ArrowException, OSError) as e:
                raise DataError(f"{file}: damaged ({str(e).splitlines()[0]}); write it again") from None

    return Source(path, "parquet", folder, list(columns), total, sha, iterate)


def _bulky(kind: Any) -> bool:
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(_bulky(kind.field(i).type) for i in range(kind.num_fields))
    return t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind)
