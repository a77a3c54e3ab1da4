"""An opened dataset: the ids, labels and metadata of all rows, and random access to their bytes in the shards.

The table of all rows is an Arrow file that is mapped into memory. Python objects are created for a row only when it is read.
"""

import difflib
import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np

from mmtune import modalities
from mmtune.contracts import JsonObject, Row
from mmtune.data.identity_labels import mix_labels, stable_label
from mmtune.data.shards import tar_index
from mmtune.data.shards.combine_tables import notes_of
from mmtune.data.shards.locate import list_shards
from mmtune.data.shards.open_tables import open_row_table
from mmtune.data.shards.remote_listing import fetch_shards
from mmtune.data.shards.row_table import RowTable, StringColumn
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.errors import DataError, DataWarning, Rejected
from mmtune.runtime.files import open_for_read_at, read_at

VALUE_COLUMNS = ("offset", "size", "field", "item", "label")
PARALLEL_FETCHES = 64
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
    """Reads bytes at any offset of a shard. Uses no file position, so threads and forked processes may share one object.

    A remote shard is fetched into the cache when it is read for the first time.
    """

    def __init__(self, files: list[ShardFile]):
        self.files = files
        self.open: dict[int, int] = {}
        self.locks = [threading.Lock() for _ in range(PARALLEL_FETCHES)]

    def read(self, shard: int, offset: int, size: int) -> bytes:
        if shard in self.open:
            return read_at(self.open[shard], size, offset)
        file = self.files[shard]
        if file.remote and not os.path.exists(file.path):
            with self.locks[shard % len(self.locks)]:
                fetch_shards([file])
        fd = open_for_read_at(file.path)
        # Files in `open` are never closed here, because another thread may be reading them. Above the limit, or if another thread
        # has opened the same shard meanwhile, the new file is used for this read only.
        if len(self.open) < MAX_OPEN and self.open.setdefault(shard, fd) == fd:
            return read_at(fd, size, offset)
        try:
            return read_at(fd, size, offset)
        finally:
            os.close(fd)

    def __reduce__(self) -> tuple[type, tuple[list[ShardFile]]]:
        return _ShardReader, (self.files,)

    # `close` is bound as a default argument because `os` may already be None when the interpreter shuts down
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for fd in self.open.values():
            try:  # not contextlib.suppress, which may also be gone
                close(fd)
            except OSError:
                pass


class ValueReader(Protocol):
    """Reads the values of a dataset: from files with random access (`_ShardReader`), or not at all if shards are streamed."""

    files: list[ShardFile]

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """The bytes at an offset of a shard."""
        ...


class Data:
    """A dataset: the rows of one or more shards, or a view of some of them (`subset`). Rows are numbered from 0 to len(data) - 1.

    ids: the ids of all rows, unique in this dataset; a sequence of strings that are kept on disk
    groups: the groups of all rows, likewise; None for a row without a group
    modalities: modalities of which at least one row has a value
    present: modality -> bool [N], the rows that have a value
    labels: "id", "group" or a modality -> int64 [N], identity labels; equal non-zero labels mean the same id, group or content
    reader: reads the values

    Arrays of a whole dataset are mapped from disk; they cannot be written to.
    """

    def __init__(self, spec: str, reader: ValueReader, table: RowTable, aliases: dict[str, str]):
        self.spec = spec
        self.reader, self._files, self._table, self._aliases = reader, reader.files, table, aliases
        self.ids: StringColumn[str] = table.strings("id")
        self.groups: StringColumn[str | None] = table.strings("group")
        known = [n for n in modalities.names() if f"{n}.present" in table.names]
        present = {n: table.numbers(f"{n}.present").view(bool) for n in known}
        self.modalities = [n for n in known if present[n].any()]
        self.present = {n: present[n] for n in self.modalities}
        self.labels = {n: table.numbers(f"{n}.label") for n in ("id", "group", *self.modalities)}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def _shard_N(self) -> np.ndarray:
        """Number of the shard of every row, int32 [N]."""
        return self._table.numbers("shard")

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
        return notes_of(self._table.table)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hash of the names and sizes of the shards and of the content of all rows, in order."""
        digest = hashlib.sha256()
        for i in np.unique(self._shard_N).tolist():
            file = self._files[i]
            size = file.entry["bytes"] if file.entry else os.path.getsize(file.path) if file.path else -1
            digest.update(f"{file.name}\0{size}\0".encode())
        digest.update(np.ascontiguousarray(self._table.numbers("row.label")).data)
        return digest.hexdigest()

    def row_numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of rows [n] in the whole dataset of which this may be a view (`subset`)."""
        return rows if self._table.rows is None else self._table.rows[rows]

    def stored_bytes(self, modality: str) -> np.ndarray:
        """Size in bytes of every row's value of `modality` as it is stored in the shard, int64 [N]; 0 for a row without one."""
        if modality not in self.present:
            return np.zeros(len(self), np.int64)
        return np.maximum(self._table.numbers(f"{modality}.size"), 0)

    def meta(self, i: int) -> JsonObject:
        """The metadata of row i: column -> value, for the columns that are not an id, group or modality."""
        document = self._table.strings("meta")[self._check_index(i)]
        return json.loads(document) if document else {}

    def column(self, name: str) -> list[MetaValue]:
        """The values of a metadata column for all rows; None for a row without the column.

        `name` may also be "id", "group", or the name of the id or group column in the packed source. Raises DataError, with the most
        similar column name, if no row has the column.
        """
        needle = json.dumps(name, ensure_ascii=False)
        documents = self._table.strings("meta")
        seen: dict[str, MetaValue] = {}  # equal strings are kept once
        values = [json.loads(t).get(name) if needle in t else None for t in documents]
        values = [seen.setdefault(v, v) if isinstance(v, str) else v for v in values]
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
            raise KeyError(f"row {self.ids[i]!r} has no {modality}")
        offset, size, field, item, label = (self._table.number(f"{modality}.{c}", i) for c in VALUE_COLUMNS)
        shard, kind = self._table.number("shard", i), modalities.get(modality)
        try:
            data = self.reader.read(shard, offset, size)
            if field != tar_index.NO_FIELD:
                data = tar_index.field_value(tar_index.parse_json(data), kind.json_fields[field], item)
            data, _ = kind.reencode(data)
            if stable_label(kind.content_key(data)) == label:
                return data
            reason = "damaged or changed"
        except (OSError, ValueError, Rejected) as e:
            reason = f"unreadable ({e})"
        path = self._files[shard].path
        raise DataError(f"{path}: {modality} of row {self.ids[i]!r} is {reason}; copy or pack the shard again")

    def row(self, i: int) -> Row:
        """Read row i with all its values."""
        i = self._check_index(i)
        values = {n: self.read(i, n) for n in self.modalities if self.present[n][i]}
        return Row(self.ids[i], self.groups[i], values, self.meta(i))

    def subset(self, indices: "Iterable[int] | np.ndarray") -> "Data":
        """Return a view of some rows, in the order of `indices`: row numbers, or a boolean mask over all rows."""
        rows = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"subset of {len(self)} rows: index {int(rows.min() if rows.min() < 0 else rows.max())}")
        return Data(self.spec, self.reader, self._table.take(rows), self._aliases)

    def without_values(self, rows: Mapping[str, np.ndarray]) -> "Data":
        """Return a view in which some values are missing.

        rows: modality -> numbers of the rows whose value of that modality is removed
        """
        content_N = self._table.numbers("row.label").copy()
        replaced = {"row.label": content_N}
        for name, of_modality in rows.items():
            for column, absent in (("size", -1), ("label", 0), ("present", 0)):
                values = self._table.numbers(f"{name}.{column}").copy()
                values[of_modality] = absent
                replaced[f"{name}.{column}"] = values
            lacking = np.full(len(of_modality), stable_label(f"without {name}".encode()), np.int64)
            content_N[of_modality] = mix_labels(content_N[of_modality], lacking)
        return Data(self.spec, self.reader, self._table.replace(replaced), self._aliases)

    def _check_index(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return int(i) % len(self)

    def __repr__(self) -> str:
        return f"Data({self.spec!r}: {len(self)} rows in {len(np.unique(self._shard_N))} shards, {', '.join(self.modalities)})"


def open_data(spec: str | os.PathLike[str] | Sequence[str]) -> Data:
    """Open packed data or other WebDataset shards.

    spec: a directory of .tar files, a .tar file, a brace or glob pattern, an fsspec URL of one of these, or a list of them; also the
        directory of a Hugging Face dataset, which is packed into the cache first (see `packed_dataset`)

    Of remote shards that `mmtune pack` has written, only the tables are fetched now; a shard is fetched when one of its rows is read.

    Issues a DataWarning if samples or values are skipped. Raises DataError, which names the file, if a shard is missing, compressed,
    truncated or not a tar file, if it differs from index.json, or if an id occurs twice.
    """
    from mmtune.data.packed_dataset import shards_of  # here, because packing imports this package

    specs = [spec] if isinstance(spec, str | os.PathLike) else spec
    listing = list_shards([shards_of(os.fspath(s)) for s in specs])
    name = spec if isinstance(spec, str) else ",".join(map(str, [spec] if isinstance(spec, os.PathLike) else spec))
    table = open_row_table(listing.shards, name)
    for note in notes_of(table):
        warnings.warn(note, DataWarning, stacklevel=2)
    return Data(name, _ShardReader(listing.shards), RowTable(table), listing.aliases)
