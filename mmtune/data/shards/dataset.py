"""An opened dataset: the ids, labels and metadata of all rows, and random access to their bytes in the shards.

Tables are kept in Arrow and NumPy, and metadata as JSON strings. Python objects are created for a row only when it is read.
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
from mmtune.data.shards.locate import locate
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.errors import DataError, DataWarning, Rejected
from mmtune.runtime.files import open_for_read_at, read_at

MAX_OPEN = 256
"""Maximum number of shards that are kept open."""

MetaValue: TypeAlias = Any
"""A value of a metadata column: any JSON value."""


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows of a dataset that are in the same tar file.

    name: unique name of the shard in the dataset
    url: where the tar file comes from
    path: local file
    start, count: the rows have the numbers start to start + count - 1
    """

    name: str
    url: str
    path: str
    start: int
    count: int


class _ShardReader:
    """Reads bytes at any offset of a shard. Uses no file position, so threads and forked processes may share one object."""

    def __init__(self, paths: list[str]):
        self.paths = paths
        self.open: dict[int, int] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        if shard in self.open:
            return read_at(self.open[shard], size, offset)
        fd = open_for_read_at(self.paths[shard])
        # Files in `open` are never closed here, because another thread may be reading them. Above the limit, or if another thread
        # has opened the same shard meanwhile, the new file is used for this read only.
        if len(self.open) < MAX_OPEN and self.open.setdefault(shard, fd) == fd:
            return read_at(fd, size, offset)
        try:
            return read_at(fd, size, offset)
        finally:
            os.close(fd)

    def __getstate__(self) -> dict[str, object]:
        return {"paths": self.paths, "open": {}}

    # `close` is bound as a default argument because `os` may already be None when the interpreter shuts down
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for fd in self.open.values():
            try:  # not contextlib.suppress, which may also be gone
                close(fd)
            except OSError:
                pass


class Data:
    """A dataset: the rows of one or more shards, or a view of some of them (`subset`). Rows are numbered from 0 to len(data) - 1.

    modalities: modalities of which at least one row has a value
    present: modality -> bool [N], the rows that have a value
    labels: "id", "group" or a modality -> int64 [N], identity labels; equal non-zero labels mean the same id, group or content
    """

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
        """The ids of all rows, unique in this dataset."""
        return self._ids.to_pylist()

    @cached_property
    def groups(self) -> list[str | None]:
        """The groups of all rows; None for a row without a group."""
        return self._table["group"].to_pylist()

    @cached_property
    def shards(self) -> list[Shard]:
        """The runs of consecutive rows in the same tar file. In a subset a tar file may occur more than once."""
        if not len(self):
            return []
        starts = np.flatnonzero(np.diff(self._shard_N, prepend=-1))
        counts = np.diff(starts, append=len(self))
        runs = zip(starts.tolist(), counts.tolist(), strict=True)
        return [Shard(f.name, f.url, f.path, s, c) for s, c in runs for f in [self._files[int(self._shard_N[s])]]]

    @cached_property
    def notes(self) -> list[str]:
        """What was skipped when the shards were scanned, one line each. Usually empty for shards written by `mmtune pack`."""
        return json.loads((self._table.schema.metadata or {}).get(b"notes", b"[]"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hash of the names and sizes of the shards and of the content of all rows, in order."""
        digest = hashlib.sha256()
        for i in sorted(set(self._shard_N.tolist())):
            file = self._files[i]
            digest.update(f"{file.name}\0{os.path.getsize(file.path)}\0".encode())
        digest.update(np.ascontiguousarray(self._column["row.label"]).tobytes())
        return digest.hexdigest()

    def stored_bytes(self, modality: str) -> np.ndarray:
        """Size in bytes of every row's value of `modality` as it is stored in the shard, int64 [N]; 0 for a row without one."""
        if modality not in self.present:
            return np.zeros(len(self), np.int64)
        return np.maximum(self._column[f"{modality}.size"], 0).astype(np.int64)

    def meta(self, i: int) -> JsonObject:
        """The metadata of row i: column -> value, for the columns that are not an id, group or modality."""
        document = self._meta[self._check_index(i)].as_py()
        return json.loads(document) if document else {}

    def column(self, name: str) -> list[MetaValue]:
        """The values of a metadata column for all rows; None for a row without the column.

        `name` may also be "id", "group", or the name of the id or group column in the packed source. Raises DataError, with the most
        similar column name, if no row has the column.
        """
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
        """Read the encoded bytes of row i's value of `modality`.

        Raises KeyError if the row has no such value. Raises DataError, which names the shard and the id, if the file cannot be read
        or has changed since it was scanned.
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
        """Read row i with all its values."""
        i = self._check_index(i)
        values = {n: self.read(i, n) for n in self.modalities if self.present[n][i]}
        return Row(self._ids[i].as_py(), self._table["group"][i].as_py(), values, self.meta(i))

    def subset(self, indices: "Iterable[int] | np.ndarray") -> "Data":
        """Return a view of some rows, in the order of `indices`: row numbers, or a boolean mask over all rows."""
        rows = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"subset of {len(self)} rows: index {int(rows.min() if rows.min() < 0 else rows.max())}")
        table = self._table.take(pa.array(rows))
        return Data(self.spec, self._reader, self._files, self._shard_N[rows], table, self._aliases)

    def without_values(self, rows: Mapping[str, np.ndarray]) -> "Data":
        """Return a view in which some values are missing.

        rows: modality -> numbers of the rows whose value of that modality is removed
        """
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
    """Convert a chunked array to a contiguous array, which is faster to index."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def open_data(spec: str | os.PathLike[str] | Sequence[str]) -> Data:
    """Open packed data or other WebDataset shards.

    spec: a directory of .tar files, a .tar file, a brace or glob pattern, an fsspec URL of one of these, or a list of them; also the
        directory of a Hugging Face dataset, which is packed into the cache first (see `packed_dataset`)

    Issues a DataWarning if samples or values are skipped. Raises DataError, which names the file, if a shard is missing, compressed,
    truncated or not a tar file, if it differs from index.json, or if an id occurs twice.
    """
    from mmtune.data.packed_dataset import shards_of  # here, because packing imports this package

    specs = [spec] if isinstance(spec, str | os.PathLike) else spec
    listing = locate([shards_of(os.fspath(s)) for s in specs])
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
    """Change string columns to 64-bit offsets, because the metadata of millions of rows may exceed 2 GB."""
    fields = [f.with_type(pa.large_string()) if pa.types.is_string(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def _assign_ids(table: pa.Table, shard_N: np.ndarray, files: list[ShardFile]) -> pa.Table:
    """Set the id of every row. A row without an id gets its key as id, or SHARD/KEY if keys repeat between shards.

    The label of an id also depends on the content of the row, so that equal ids ("0001") of unrelated datasets have different labels.
    Raises DataError if an id occurs twice.
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
    """Find pairs of rows with equal labels, int64 [P, 2]."""
    order = np.argsort(label_N, kind="stable")
    at = np.flatnonzero(label_N[order][1:] == label_N[order][:-1])
    return np.stack([order[at], order[at + 1]], axis=1)
