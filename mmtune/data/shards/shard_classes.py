"""The classes of the rows of a shard, counted in its table of rows, and their files.

A file has, for each query, the distinct classes, and for each of its modalities the distinct pairs (content, class) of the rows.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmtune.contracts import Pair
from mmtune.data.shards import shard_cache, tar_index
from mmtune.data.shards.class_values import GROUP, ClassColumn, class_label
from mmtune.data.shards.row_table import RowTable
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.runtime.files import write_bytes

VERSION = 1  # increase it when the content of these files changes


@dataclass(frozen=True)
class ClassQuery:
    """Which classes to count.

    column: as in `ClassColumn`
    pairs: pairs of modalities; rows that have both sides of one of them are counted
    """

    column: str
    pairs: tuple[Pair, ...]

    @property
    def modalities(self) -> list[str]:
        """The modalities in `pairs`."""
        return list(dict.fromkeys(m for pair in self.pairs for m in pair))


@dataclass
class ShardClasses:
    """The classes of the rows of a shard.

    labels, names: [u], the distinct classes, in ascending order of their labels
    contents: modality -> int64 [n, 2], the distinct pairs (content label, class label or 0) of rows with both sides of a pair with the
        modality
    """

    labels: np.ndarray
    names: list[str]
    contents: dict[str, np.ndarray] = field(default_factory=dict)


def count_in_table(table: pa.Table, queries: Sequence[ClassQuery], aliases: Mapping[str, str]) -> list[ShardClasses]:
    """Count the classes of each query in the table of a shard (see `tar_index.scan`). aliases: as in `ShardListing`"""
    rows = RowTable(table)
    columns: dict[str, tuple[np.ndarray, dict[int, str]]] = {}
    found = []
    for query in queries:
        if query.column not in columns:
            columns[query.column] = _class_labels(rows, query.column, aliases)
        label_N, name_of = columns[query.column]
        has = {m: (rows.numbers(f"{m}.size") >= 0) & (rows.numbers(f"{m}.label") != 0) for m in query.modalities}
        used = {m: np.zeros(len(rows), bool) for m in query.modalities}
        for a, b in query.pairs:
            both = has[a] & has[b]
            used[a] |= both
            used[b] |= both
        labels = np.unique(label_N[np.any(list(used.values()), axis=0)])
        labels = labels[labels != 0]
        contents = {
            m: np.unique(np.stack([rows.numbers(f"{m}.label")[mask], label_N[mask]], axis=1), axis=0)
            for m, mask in used.items()
        }
        found.append(ShardClasses(labels, [name_of[label] for label in labels.tolist()], contents))
    return found


def _class_labels(rows: RowTable, column: str, aliases: Mapping[str, str]) -> tuple[np.ndarray, dict[int, str]]:
    """Return (label of each row's class [N], 0 without one; {label: class})."""
    if column == GROUP:
        label_N = rows.numbers("group.label")
        distinct, first = np.unique(label_N, return_index=True)
        names = rows.strings("group").take(first)
        return label_N, {label: str(name) for label, name in zip(distinct.tolist(), names, strict=True) if label}
    read, label_of = ClassColumn(column, aliases), dict[str, int]()
    label_N = np.zeros(len(rows), np.int64)
    columns = (rows.strings(name) for name in ("meta", "id", "key", GROUP))
    for i, (meta, id, key, group) in enumerate(zip(*columns, strict=True)):
        value = read.value(meta or "", id or key, group)
        if value is not None:
            if value not in label_of:
                label_of[value] = class_label(value)
            label_N[i] = label_of[value]
    return label_N, {label: value for value, label in label_of.items()}


# --- files -----------------------------------------------------------------------------------------------------------


def file_key(shard: ShardFile, queries: Sequence[ClassQuery]) -> str:
    """The start of the names of a shard's files: another one when the shard or the queries change, as far as that is known without
    reading it."""
    return json_hash([VERSION, tar_index.signature(), shard_identity(shard), [[q.column, q.pairs] for q in queries]])[:32]


def shard_identity(shard: ShardFile) -> list[object]:
    """What changes when a shard changes, as far as that is known without reading it."""
    if shard.entry:
        return [shard.name, shard.entry["sha256"]]
    return [shard.name, shard.url, shard_cache.stamp_of_file(shard.path) if shard.path else shard.info]


def json_hash(value: object) -> str:
    """SHA-256 of a value as JSON text."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def write_classes(path: Path, found: Sequence[ShardClasses]) -> None:
    """Write the classes of a shard, atomically."""
    arrays: dict[str, np.ndarray] = {}
    for i, classes in enumerate(found):
        arrays[f"{i}.labels"] = classes.labels
        arrays[f"{i}.names"] = np.frombuffer(json.dumps(classes.names).encode(), np.uint8)
        arrays |= {f"{i}.contents.{m}": pairs for m, pairs in classes.contents.items()}
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle`
    write_bytes(path, out.getvalue())


def read_classes(path: Path, query: int, modalities: Sequence[str] = ()) -> ShardClasses:
    """Read the classes of one query, by its number; with the contents of `modalities` only."""
    with np.load(path, allow_pickle=False) as arrays:
        names = [str(name) for name in json.loads(arrays[f"{query}.names"].tobytes())]
        contents = {m: arrays[f"{query}.contents.{m}"] for m in modalities}
        return ShardClasses(arrays[f"{query}.labels"], names, contents)
