"""The negatives table: a Parquet file, written in parts and atomically, that stores the fingerprint of the mining model."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, first_line
from mmtune.runtime.files import atomic_open
from mmtune.runtime.format_number import check_format

SCHEMA = pa.schema(
    [
        ("direction", pa.string()),
        ("query_id", pa.string()),
        ("negative_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("positive_score", pa.float32()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
    ]
)
FORMAT = 1
"""The format number, in the file's metadata; a table without one is of format 1, or one of the user's own."""
ROW_GROUP = 65536
"""Number of rows per row group. It is fixed, so that the file's bytes do not depend on the block size."""
MINED, DROPPED = "mined", "dropped"
"""Values of the column `verdict`."""


class TableWriter:
    """Context manager that writes a table: `with TableWriter(path, fingerprint, settings) as table: table.write(columns)`.

    The file appears when the block ends without an exception.
    """

    def __init__(self, path: str | Path, fingerprint: str, settings: JsonObject):
        self.path = Path(path)
        self.schema = SCHEMA.with_metadata(
            {"fingerprint": fingerprint, "settings": json.dumps(settings, sort_keys=True), "format": str(FORMAT)}
        )
        self._buffered_rows = 0
        self._buffer: list[pa.Table] = []
        self._closing = ExitStack()

    def __enter__(self) -> "TableWriter":
        file = self._closing.enter_context(atomic_open(self.path))
        self._parquet = pq.ParquetWriter(file, self.schema, compression="zstd")
        return self

    def write(self, columns: Mapping[str, pa.Array]) -> None:
        """Append rows. columns: {column name: array}, with every column of SCHEMA."""
        part = pa.table([columns[n] for n in SCHEMA.names], schema=self.schema)
        self._buffered_rows += len(part)
        self._buffer.append(part)
        if self._buffered_rows >= ROW_GROUP:
            self._flush(last=False)

    def _flush(self, last: bool) -> None:
        table = pa.concat_tables(self._buffer) if self._buffer else self.schema.empty_table()
        whole = len(table) if last else len(table) // ROW_GROUP * ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            self._parquet.write_table(table.slice(start, min(ROW_GROUP, whole - start)), row_group_size=ROW_GROUP)
        self._buffer, self._buffered_rows = [table.slice(whole)], len(table) - whole

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush(last=True)
        self._parquet.close()
        self._closing.__exit__(kind, error, trace)


@dataclass
class TableMetadata:
    """What a table says about itself.

    fingerprint: of the model that mined it; "" if the file has none
    settings: see `table_settings`
    rows: number of rows
    """

    fingerprint: str
    settings: JsonObject
    rows: int


def read_metadata(path: str | Path) -> TableMetadata:
    """Read the metadata. Raises DataError if the table is missing, is not a Parquet file, or lacks a column."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such negatives table; make one with mmtune mine MODEL DATA --out {path}") from None
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path}: not a Parquet file ({first_line(e)})") from None
    with file:
        schema = file.schema_arrow
        missing = [n for n in ("direction", "query_id", "negative_id") if n not in schema.names]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r}; a negatives table has {', '.join(SCHEMA.names)}")
        metadata = schema.metadata or {}
        number = metadata.get(b"format", b"").decode(errors="replace")
        check_format(int(number) if number.isdecimal() else number or None, FORMAT, path, DataError, missing=1)
        try:
            settings = json.loads(metadata.get(b"settings", b"{}"))
            fingerprint = metadata.get(b"fingerprint", b"").decode()
        except (ValueError, RecursionError):
            settings = None
        if not isinstance(settings, dict):
            raise DataError(f"{path}: its metadata is damaged; mine again, or write the table without metadata")
        return TableMetadata(fingerprint, settings, file.metadata.num_rows)


def check_fingerprint(path: str | Path, fingerprint: str, allow_stale: bool) -> str | None:
    """Check that the table was mined with the weights of this fingerprint; return None if so.

    Otherwise returns a message for the user if `allow_stale`, and raises DataError if not.
    """
    of_table = read_metadata(path).fingerprint
    if of_table == fingerprint:
        return None
    problem = "does not store the fingerprint of the model that mined it"
    if of_table:
        problem = f"was mined with other weights ({of_table[:12]}, not {fingerprint[:12]})"
    if not allow_stale:
        raise DataError(f"{path} {problem}; mine again, or allow a stale table (in a recipe: mining.allow_stale=true)")
    return f"{path} {problem}; used anyway, because stale tables are allowed"


def read_table(
    path: str | Path, fingerprint: str, allow_stale: bool = False, verdict: str | None = MINED
) -> Iterator[pa.Table]:
    """Yield the rows with this verdict (None: all rows), one row group at a time.

    All rows of a table without a verdict column count as mined.
    """
    check_fingerprint(path, fingerprint, allow_stale)
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            try:
                table = file.read_row_group(number)
            except (pa.ArrowException, OSError) as e:
                raise DataError(f"{path}: damaged ({first_line(e)}); mine again") from None
            if verdict is not None and "verdict" in table.column_names:
                table = table.filter(pc.equal(table["verdict"], verdict))
            yield table
