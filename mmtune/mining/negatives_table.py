"""The negatives table: Parquet that streams to disk, carries its model's fingerprint, and appears whole or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmtune.errors import DataError
from mmtune.runtime.files import atomic_open

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
ROW_GROUP = 65536  # fixed, so that the file's bytes do not depend on how large the blocks were
MINED, DROPPED = "mined", "dropped"


class TableWriter:
    """`with TableWriter(path, fingerprint, settings) as t: t.write(...)`; columns of one direction at a time."""

    def __init__(self, path: str | Path, fingerprint: str, settings: dict[str, Any]):
        self.path = Path(path)
        meta = {"fingerprint": fingerprint, "settings": json.dumps(settings, sort_keys=True)}
        self.schema = SCHEMA.with_metadata(meta)
        self.rows, self._held, self._waiting = 0, 0, []  # type: ignore[var-annotated]

    def __enter__(self) -> "TableWriter":
        self._file = atomic_open(self.path)
        self._out = pq.ParquetWriter(self._file.__enter__(), self.schema, compression="zstd")
        return self

    def write(self, columns: dict[str, Any]) -> None:
        """Append rows; `columns` maps every name of SCHEMA to an array."""
        part = pa.table([columns[n] for n in SCHEMA.names], schema=self.schema)
        self.rows += len(part)
        self._held += len(part)
        self._waiting.append(part)
        if self._held >= ROW_GROUP:
            self._flush(last=False)

    def _flush(self, last: bool) -> None:
        table = pa.concat_tables(self._waiting) if self._waiting else self.schema.empty_table()
        whole = len(table) if last else len(table) // ROW_GROUP * ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            self._out.write_table(table.slice(start, min(ROW_GROUP, whole - start)), row_group_size=ROW_GROUP)
        self._waiting, self._held = [table.slice(whole)], len(table) - whole

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._flush(last=True)
        self._out.close()
        self._file.__exit__(kind, error, trace)


def read_meta(path: str | Path) -> dict[str, Any]:
    """{"fingerprint", "settings", "rows"} of a table. DataError when it is missing, no Parquet, or lacks a column."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such negatives table; make one with mmtune mine MODEL DATA --out {path}") from None
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path}: not a Parquet file ({str(e).splitlines()[0]})") from None
    with file:
        schema = file.schema_arrow
        missing = [n for n in ("direction", "query_id", "negative_id") if n not in schema.names]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r}; a negatives table has {', '.join(SCHEMA.names)}")
        meta = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
        rows = file.metadata.num_rows
    return {"fingerprint": meta.get("fingerprint", ""), "settings": json.loads(meta.get("settings", "{}")), "rows": rows}


def check_fingerprint(path: str | Path, fingerprint: str, allow_stale: bool) -> str | None:
    """None when the table was mined with these weights; else a line that says so when allowed, and DataError when not."""
    found = read_meta(path)["fingerprint"]
    if found == fingerprint:
        return None
    what = "does not say which weights mined it"
    if found:
        what = f"was mined with other weights ({found[:12]}, not {fingerprint[:12]})"
    if not allow_stale:
        raise DataError(f"{path} {what}; mine again, or allow a stale table (in a recipe: mining.allow_stale=true)")
    return f"{path} {what}; used all the same, as asked"


def read_table(
    path: str | Path, fingerprint: str, allow_stale: bool = False, verdict: str | None = MINED
) -> Iterator[pa.Table]:
    """The rows with this verdict (None: all), a row group at a time. A table without a verdict column is all mined."""
    check_fingerprint(path, fingerprint, allow_stale)
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            if verdict is not None and "verdict" in table.column_names:
                table = table.filter(pc.equal(table["verdict"], verdict))
            yield table
