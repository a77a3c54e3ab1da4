"""Write the directory of `mmtune pairs`: as a whole, or not at all.

All files are written to the sibling directory `.work-NAME`, which is renamed to `out` when it is complete. A killed command leaves
the work directory. The same command continues with what lies in `PairsWriter.work` (a cache, a database), if the arguments and the
sources are the same as before, and starts again otherwise.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.pairs_result import PairsResult
from mmtune.runtime.files import read_json, sha256_file, write_json
from mmtune.runtime.work_lock import Timeout, file_lock

SCHEMA = 1
"""Version of the directory's layout."""

BATCH_ROWS = 16384
"""Rows of pairs.parquet that are held in memory before they are written."""

BASE_FIELDS = [("query", pa.string()), ("item", pa.string()), ("grade", pa.int32()), ("weight", pa.float32())]
"""The columns that every pairs.parquet has, in this order; a grade of 0 is "not relevant", a weight multiplies a pair's loss."""


def source_identity(path: str | Path) -> JsonObject:
    """Name, size and SHA-256 hash of a source file, or of all files of a folder, for `PairsWriter`'s `sources`."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file())
    lines = "".join(f"{p.relative_to(path).as_posix()} {sha256_file(p)}\n" for p in files)
    size = sum(p.stat().st_size for p in files)
    return {"name": path.name, "bytes": size, "sha256": hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest()}


class PairsWriter:
    """Context manager that writes one directory of pairs.

        with PairsWriter(out, "labels", arguments, [source_identity(table)]) as writer:
            if writer.finished is not None:
                return writer.finished
            ...
            writer.add("red boot", "B-17", 3)
            writer.judge("red boot", "B-17", 3)
            writer.drops.add("no caption", "row 12")
            return writer.publish(rows)

    out: directory to write
    kind: kind of the source
    arguments: everything that the output depends on beside the sources, as JSON values
    sources: what identifies the sources, see `source_identity`
    columns: further columns of pairs.parquet and their Arrow types, e.g. {"group": pa.string()}
    base: whether pairs.parquet has the columns of BASE_FIELDS. Without them its rows are those that are packed: id, group, a column for
        each modality, and metadata
    overwrite: write the directory again, also if it was made with other arguments or is complete

    finished: the result, if `out` is complete and made by the same arguments of the same sources
    work: directory for files that an interrupted command may use again; it is removed by `publish`
    files: directory for further files that become part of `out`
    drops: what is dropped, see `DropCounts`

    Raises DataError if `out` contains something else, or if another process is writing it.
    """

    def __init__(
        self,
        out: str | Path,
        kind: str,
        arguments: JsonObject,
        sources: Iterable[JsonObject],
        *,
        columns: Mapping[str, pa.DataType] | None = None,
        base: bool = True,
        overwrite: bool = False,
    ):
        self.out, self.kind, self.overwrite = Path(out), kind, overwrite
        self.identity: JsonObject = json.loads(
            json.dumps({"schema": SCHEMA, "kind": kind, "arguments": arguments, "sources": list(sources)})
        )
        self.schema = pa.schema([*(BASE_FIELDS if base else []), *(columns or {}).items()])
        self.drops = DropCounts()
        self.finished: PairsResult | None = None
        self.pairs = self.judgments = 0
        root = self.out.absolute().parent / f".work-{self.out.name}"
        self.root, self.work, self.files = root, root / "work", root / "files"
        self._lock = file_lock(root.with_name(f"{root.name}.lock"))
        self._rows: list[JsonObject] = []
        self._table: pq.ParquetWriter | None = None
        self._lines: TextIO | None = None

    def __enter__(self) -> "PairsWriter":
        self.root.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{self.out}: another process is writing it") from None
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        return self

    def _open(self) -> None:
        if (self.out / "pairs.json").is_file():
            document = read_json(self.out / "pairs.json")
            if document["identity"] == self.identity and not self.overwrite:
                self.finished = PairsResult(**{**document["result"], "out": str(self.out)})
                return
            if not self.overwrite:
                raise DataError(f"{self.out}: made by another command or of another source; add --overwrite to replace it")
        elif self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise DataError(f"{self.out}: exists and is no directory of pairs; choose another --out")
        stamp = self.root / "identity.json"
        if not stamp.is_file() or read_json(stamp) != self.identity:
            shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.files, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self.files.mkdir()
        write_json(stamp, self.identity)
        self._table = pq.ParquetWriter(self.files / "pairs.parquet", self.schema)
        self._lines = open(self.files / "judgments.jsonl", "w", encoding="utf-8", newline="\n")

    def add(self, query: str, item: str, grade: int, weight: float = 1.0, **columns: object) -> None:
        """Add one pair to pairs.parquet. `columns` has the values of further columns; missing ones are null."""
        self.add_row(query=query, item=item, grade=grade, weight=weight, **columns)

    def add_row(self, **columns: object) -> None:
        """Add one row to pairs.parquet by its columns; missing ones are null."""
        self._rows.append(columns)
        if len(self._rows) >= BATCH_ROWS:
            self._flush()

    def add_batch(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Add pairs as Arrow columns; those of `schema` that the batch lacks are null, others are an error."""
        self._flush()
        self._write(pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch)

    def _flush(self) -> None:
        if self._rows:
            self._write(pa.Table.from_pylist(self._rows, schema=self.schema))
            self._rows = []

    def _write(self, table: pa.Table) -> None:
        assert self._table is not None, "the directory is complete already"
        names = set(table.column_names)
        assert names <= set(self.schema.names), names - set(self.schema.names)
        arrays = [table[f.name].cast(f.type) if f.name in names else pa.nulls(len(table), f.type) for f in self.schema]
        self._table.write_table(pa.table(arrays, schema=self.schema))
        self.pairs += len(table)

    def judge(self, query: str, item: str, grade: int, **fields: object) -> None:
        """Add one line to judgments.jsonl. `fields` are further fields of the line, e.g. judge or direction."""
        assert self._lines is not None, "the directory is complete already"
        self._lines.write(json.dumps({"query": query, "item": item, "grade": int(grade), **fields}, ensure_ascii=False) + "\n")
        self.judgments += 1

    def publish(self, rows: int, measures: JsonObject | None = None) -> PairsResult:
        """Write dropped.json and pairs.json, move everything to `out` at once, and return the result.

        rows: number of rows, events or files that the source has
        """
        assert self._table is not None and self._lines is not None
        self._flush()
        self._table.close()
        self._lines.close()
        dropped = self.drops.to_list()
        kept = {"rows": rows, "pairs": self.pairs, "judgments": self.judgments}
        write_json(self.files / "dropped.json", {**kept, "dropped": dropped})
        names = sorted([*(p.name for p in self.files.iterdir()), "pairs.json"])
        result = PairsResult(
            str(self.out), self.kind, rows, self.pairs, self.judgments, dropped, names, json.loads(json.dumps(measures or {}))
        )
        write_json(self.files / "pairs.json", {"identity": self.identity, "result": result.to_dict()})
        self._replace()
        return result

    def discard(self) -> None:
        """Remove what was written so far, the files in `work` included; nothing is published."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _replace(self) -> None:
        for file in self.files.rglob("*"):
            if file.is_file():
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
        old = self.root / "old"
        if self.out.exists():
            os.replace(self.out, old)
        try:
            os.replace(self.files, self.out)
        except BaseException:
            if old.exists() and not self.out.exists():
                os.replace(old, self.out)
            raise
        shutil.rmtree(self.root, ignore_errors=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._table is not None:
            with contextlib.suppress(Exception):  # a half-written table; the error that stopped the command is the one to show
                self._table.close()
        if self._lines is not None:
            self._lines.close()
        if self.finished is None and kind is not None and not any(self.work.glob("*")):
            shutil.rmtree(self.root, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # while it is held, so that no other process can have acquired the removed file
            os.unlink(self._lock.lock_file)
        self._lock.release()
