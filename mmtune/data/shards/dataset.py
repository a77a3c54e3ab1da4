"""DATA, opened: every row's identity, labels and position in the shards, and random access to its bytes.

No row is a Python object before it is read: tables stay in Arrow and NumPy, metadata in JSON.
"""

import difflib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmtune import modalities
from mmtune.contracts import JsonObject, Row
from mmtune.data.identity_labels import mix_labels, stable_label
from mmtune.data.shards import shard_cache, tar_index
from mmtune.data.shards.locate import ShardFile, locate
from mmtune.errors import DataError, DataWarning, Rejected
from mmtune.runtime.files import open_for_read_at, read_at

MAX_OPEN = 256

MetaValue: TypeAlias = Any
"""A cell of a metadata column: a JSON value."""


@dataclass(frozen=True)
class Shard:
    """Rows [start, start + count) of a Data lie in the tar `path` (the local copy of `url`)."""

    name: str
    url: str
    path: str
    start: int
    count: int


class _ShardReader:
    """Reads shards by number at any offset: no file position is shared, so threads and forked workers may use one object."""

    def __init__(self, paths: list[str]):
        self.paths = paths
        self.open: dict[int, int] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        if shard in self.open:
            return read_at(self.open[shard], size, offset)
        fd = open_for_read_at(self.paths[shard])
        # Never close one that another thread may be reading: past the limit, each read opens its own.
        if len(self.open) < MAX_OPEN and self.open.setdefault(shard, fd) == fd:
            return read_at(fd, size, offset)
        try:
            return read_at(fd, size, offset)
        finally:
            os.close(fd)

    def __getstate__(self) -> dict[str, object]:
        return {"paths": self.paths, "open": {}}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the interpreter's end `os` may be gone already
        for fd in self.open.values():
            try:  # and contextlib
                close(fd)
            except OSError:
                pass


class Data:
    """Rows of one or more shards, or a view of some of them (`subset`). Rows are numbered 0 .. len-1."""

    def __init__(
        self,
        spec: str,
        reader: _ShardReader,
        files: list[ShardFile],
        shard_N: np.ndarray,
        table: pa.Table,
        aliases: dict[str, str],
    ):
        self.spec = spec
        self._reader, self._files, self._shard_N, self._table, self._aliases = reader, files, shard_N, table, aliases
        known = [n for n in modalities.names() if f"{n}.size" in table.column_names]
        self._column: dict[str, np.ndarray] = {}
        for name in [c for c in table.column_names if "." in c]:
            self._column[name] = table[name].to_numpy()
        self._meta, self._ids = _one_array(table["meta"]), _one_array(table["id"])
        self.present = {n: self._column[f"{n}.size"] >= 0 for n in known}
        self.modalities = [n for n in known if self.present[n].any()]
        self.present = {n: self.present[n] for n in self.modalities}
        self.labels: dict[str, np.ndarray] = {"id": self._column["id.label"], "group": self._column["group.label"]}
        self.labels |= {n: self._column[f"{n}.label"] for n in self.modalities}

    def __len__(self) -> int:
        return len(self._shard_N)

    @cached_property
    def ids(self) -> list[str]:
        """Row ids, unique in this Data."""
        return self._ids.to_pylist()

    @cached_property
    def groups(self) -> list[str | None]:
        """Groups, None where a row has none."""
        return self._table["group"].to_pylist()

    @cached_property
    def shards(self) -> list[Shard]:
        """Runs of rows that lie in one tar. A tar comes more than once if a subset jumps between tars."""
        if not len(self):
            return []
        starts = np.flatnonzero(np.diff(self._shard_N, prepend=-1))
        counts = np.diff(starts, append=len(self))
        runs = zip(starts.tolist(), counts.tolist(), strict=True)
        return [Shard(f.name, f.url, f.path, s, c) for s, c in runs for f in [self._files[int(self._shard_N[s])]]]

    @cached_property
    def notes(self) -> list[str]:
        """What was ignored when the shards were scanned, one line each (empty for our own shards)."""
        return json.loads((self._table.schema.metadata or {}).get(b"notes", b"[]"))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shards' names and sizes and every row's content, in order."""
        digest = hashlib.sha256()
        for i in sorted(set(self._shard_N.tolist())):
            file = self._files[i]
            digest.update(f"{file.name}\0{os.path.getsize(file.path)}\0".encode())
        digest.update(np.ascontiguousarray(self._column["row.label"]).tobytes())
        return digest.hexdigest()

    def meta(self, i: int) -> JsonObject:
        """Row i's metadata: the source columns without a role."""
        document = self._meta[self._check_index(i)].as_py()
        return json.loads(document) if document else {}

    def column(self, name: str) -> list[MetaValue]:
        """One metadata column of all rows, None where a row lacks it. `id`, `group`, and the names which those columns had in the
        packed source, are columns too. Raises DataError with the nearest name when no row has it."""
        needle = json.dumps(name, ensure_ascii=False)
        documents = self._meta.to_pylist()
        values = [json.loads(t).get(name) if needle in t else None for t in documents]
        if any(v is not None for v in values):
            return values
        alias = name if name in ("id", "group") else self._aliases.get(name)
        if alias:
            return list(self.ids if alias == "id" else self.groups)
        known = sorted({k for t in documents if t for k in json.loads(t)} | set(self._aliases) | {"id", "group"})
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"columns: {', '.join(known)}"
        raise DataError(f"{self.spec}: no row has a column {name!r}; {hint}")

    def read(self, i: int, modality: str) -> bytes:
        """The original bytes of row i's value of `modality`.

        Raises KeyError where the row lacks it, DataError naming shard and id when the bytes have changed since the scan.
        """
        i = self._check_index(i)
        if modality not in self.present or not self.present[modality][i]:
            raise KeyError(f"row {self._ids[i].as_py()!r} has no {modality}")
        shard, size = int(self._shard_N[i]), int(self._column[f"{modality}.size"][i])
        kind, field = modalities.get(modality), int(self._column[f"{modality}.field"][i])
        try:
            data = self._reader.read(shard, int(self._column[f"{modality}.offset"][i]), size)
            if field != tar_index.NO_FIELD:
                item = int(self._column[f"{modality}.item"][i])
                data = tar_index.field_value(tar_index.parse_json(data), kind.json_fields[field], item)
            data, _ = kind.reencode(data)
            if stable_label(kind.content_key(data)) == int(self._column[f"{modality}.label"][i]):
                return data
            reason = "damaged or changed"
        except (OSError, ValueError, Rejected) as e:
            reason = f"unreadable ({e})"
        path = self._files[shard].path
        raise DataError(f"{path}: {modality} of row {self._ids[i].as_py()!r} is {reason}; copy or pack the shard again")

    def row(self, i: int) -> Row:
        """Row i with all its values read."""
        i = self._check_index(i)
        values = {n: self.read(i, n) for n in self.modalities if self.present[n][i]}
        return Row(self._ids[i].as_py(), self._table["group"][i].as_py(), values, self.meta(i))

    def subset(self, indices: "Iterable[int] | np.ndarray") -> "Data":
        """A view of some rows, in the order given; `indices` may be a boolean mask."""
        rows = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"subset of {len(self)} rows: index {int(rows.min() if rows.min() < 0 else rows.max())}")
        table = self._table.take(pa.array(rows))
        return Data(self.spec, self._reader, self._files, self._shard_N[rows], table, self._aliases)

    def without_values(self, rows: Mapping[str, np.ndarray]) -> "Data":
        """This Data, in which the given rows lack their value of a modality. rows: modality -> row numbers."""
        table, content_N = self._table, self._column["row.label"].copy()
        for name, of_modality in rows.items():
            for column, absent in (("size", -1), ("label", 0)):
                values = self._column[f"{name}.{column}"].copy()
                values[of_modality] = absent
                table = _replace_column(table, f"{name}.{column}", values)
            lacking = np.full(len(of_modality), stable_label(f"without {name}".encode()), np.int64)
            content_N[of_modality] = mix_labels(content_N[of_modality], lacking)
        table = _replace_column(table, "row.label", content_N)
        return Data(self.spec, self._reader, self._files, self._shard_N, table, self._aliases)

    def _check_index(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return int(i) % len(self)

    def __repr__(self) -> str:
        return (
            f"Data({self.spec!r}: {len(self)} rows in {len(set(self._shard_N.tolist()))} shards, {', '.join(self.modalities)})"
        )


def _replace_column(table: pa.Table, name: str, values: np.ndarray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """One contiguous array (indexing a chunked one walks its chunks)."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def open_data(spec: str | os.PathLike[str] | Sequence[str]) -> Data:
    """Open DATA: a directory of *.tar, a tar, a brace or glob pattern, an fsspec URL of these, or a list of them.

    Warns (DataWarning) of what was left out. Raises DataError naming the file: nothing there, no tar, compressed, truncated, not what index.json says, ids twice.
    """
    listing = locate(spec)
    files = listing.shards
    with ThreadPoolExecutor(min(4, len(files))) as pool:
        tables = list(pool.map(lambda f: shard_cache.table(f.path, f.url, (f.entry or {}).get("sha256")), files))
    notes = []
    for file, table in zip(files, tables, strict=True):
        if file.entry and file.entry["rows"] != len(table):
            raise DataError(
                f"{file.url}: {len(table)} rows, index.json says {file.entry['rows']}; copy it again, or pack again"
            )
        for note, count in json.loads((table.schema.metadata or {}).get(b"notes", b"{}")).items():
            notes.append(f"{file.name}: {count} {note}")
    table = pa.concat_tables([_with_large_strings(t.replace_schema_metadata(None)) for t in tables])
    name = spec if isinstance(spec, str) else ",".join(map(str, [spec] if isinstance(spec, os.PathLike) else spec))
    if not len(table):
        raise DataError(f"{name}: no sample with a known modality ({'; '.join(notes) or 'the shards are empty'})")
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    shard_N = np.repeat(np.arange(len(tables), dtype=np.int32), [len(t) for t in tables])
    table = _assign_ids(table, shard_N, files).replace_schema_metadata({"notes": json.dumps(notes)})
    return Data(name, _ShardReader([f.path for f in files]), files, shard_N, table, listing.aliases)


def _with_large_strings(table: pa.Table) -> pa.Table:
    """With 64-bit string offsets: the metadata of millions of rows is more than 2 GB."""
    fields = [f.with_type(pa.large_string()) if pa.types.is_string(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def _assign_ids(table: pa.Table, shard_N: np.ndarray, files: list[ShardFile]) -> pa.Table:
    """Give every row its id: its own, else its key, else (where keys repeat between shards) shard/key. Raises DataError for repeated ids.

    The id's label also covers the row's content, so that "0001" of two unrelated datasets are different labels.
    """
    id_N, derived_N = table["id.label"].to_numpy(), pc.is_null(table["id"]).to_numpy(zero_copy_only=False)
    ids = pc.coalesce(table["id"], table["key"])
    repeated = _equal_pairs(id_N)
    if len(repeated) and derived_N.any():
        names = pa.array([f.name for f in files], pa.large_string()).take(pa.array(shard_N))
        ids = pc.coalesce(table["id"], pc.binary_join_element_wise(names, table["key"], pa.scalar("/", pa.large_string())))
        shard_label_N = np.array([stable_label(f.name.encode()) for f in files], np.int64)[shard_N]
        id_N = np.where(derived_N, mix_labels(id_N, shard_label_N), id_N)
        repeated = _equal_pairs(id_N)
    if len(repeated):
        a, b = repeated[0].tolist()
        where = f"{files[shard_N[a]].url} and {files[shard_N[b]].url}"
        raise DataError(
            f"the id {ids[a].as_py()!r} is there twice ({where}; {len(repeated)} such rows); "
            "ids must be unique: pack again with --id COLUMN, or open the shards as separate datasets"
        )
    table = table.set_column(table.column_names.index("id"), "id", ids)
    label_N = pa.array(mix_labels(id_N, table["row.label"].to_numpy()))
    return table.set_column(table.column_names.index("id.label"), "id.label", label_N).drop_columns(["key"])


def _equal_pairs(label_N: np.ndarray) -> np.ndarray:
    """Pairs of rows with the same label, int64 [P, 2]."""
    order = np.argsort(label_N, kind="stable")
    at = np.flatnonzero(label_N[order][1:] == label_N[order][:-1])
    return np.stack([order[at], order[at + 1]], axis=1)
