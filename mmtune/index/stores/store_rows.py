"""What all stores share: validation of rows and queries, the stamp with the fingerprint, and metadata as typed columns."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.query.filters import ColumnPath, encodable, value_kind
from mmtune.index.stores.store_protocol import INDEXES
from mmtune.search.vectors import normalize_rows

ID_BYTES = 1024
"""The longest id in bytes of UTF-8 that every engine's key takes."""
MAX_INTEGER = 10**300
"""Integers beyond this are refused: some engines hold numbers as float64."""


def check_rows(
    ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]], dim: int, label: str
) -> tuple[list[str], np.ndarray, list[JsonObject]]:
    """The rows as they may be written: ids, unit float32 [N, dim], metadata as plain JSON. DataError names what is wrong.

    label: how messages call the store.
    """
    ids = list(ids)
    vectors_ND = np.asarray(vectors_ND)
    if vectors_ND.ndim != 2 or len(ids) != len(vectors_ND) or len(ids) != len(meta):
        raise DataError(f"{label}: {len(ids)} ids, vectors {vectors_ND.shape} and {len(meta)} metadata: one of each a row")
    if len(ids) and vectors_ND.shape[1] != dim:
        raise DataError(f"{label}: vectors of {vectors_ND.shape[1]} dimensions; this store holds {dim}")
    if len(set(ids)) < len(ids):
        raise DataError(f"{label}: id {_first_repeated(ids)!r} comes twice in one upsert")
    for id in ids:
        check_id(id, label)
    return (
        ids,
        normalize_rows(vectors_ND.reshape(len(ids), dim), label),
        [plain_metadata(m, f"{label}: id {i!r}") for i, m in zip(ids, meta, strict=True)],
    )


def _first_repeated(ids: Sequence[str]) -> str:
    earlier: set[str] = set()
    for id in ids:
        if id in earlier:
            return id
        earlier.add(id)
    raise ValueError("no id comes twice")


def check_id(id: str, label: str) -> None:
    """DataError when an id is empty, too long, or holds what a database refuses."""
    if not isinstance(id, str) or not id or not _storable(id) or len(id.encode()) > ID_BYTES:
        raise DataError(f"{label}: id {str(id)[:80]!r}: ids are 1 to {ID_BYTES} bytes of UTF-8 without NUL")


def check_name(name: str) -> str:
    """The name of a table, if it is safe as a folder's name and in SQL; else DataError."""
    if not re.fullmatch(r"[a-z0-9_]{1,60}", name):
        raise DataError(f"store name {name[:80]!r}: 1 to 60 of a-z, 0-9 and _")
    return name


def check_index(index: str, label: str, search_dim: int | None, memory_mb: int | None) -> None:
    """For stores without options: DataError for an index that is not in INDEXES, or for an option."""
    if index not in INDEXES:
        raise DataError(f"{label}: no index {index!r}; there are {', '.join(INDEXES)}")
    for name, value in (("--search-dim", search_dim), ("--memory-mb", memory_mb)):
        if value is not None:
            raise DataError(f"{label}: {name} is an option of the faiss store, not of this one")


def check_queries(query_QD: np.ndarray, dim: int, k: int, label: str) -> np.ndarray:
    """Unit float32 [Q, dim]. DataError for another shape, NaN or infinity, or k < 1."""
    query_QD = np.asarray(query_QD)
    if k < 1:
        raise DataError(f"{label}: k {k}: ask for one answer or more")
    if query_QD.ndim != 2 or query_QD.shape[1] != dim:
        raise DataError(f"{label}: queries of shape {query_QD.shape}; this store holds {dim} dimensions")
    return normalize_rows(query_QD, f"{label}: queries")


def stack_in_order(ids: Sequence[str], vectors: Mapping[str, object], dim: int, label: str) -> np.ndarray:
    """Fetched vectors [N, dim] float32 in the order of `ids`. DataError names a missing id."""
    missing = [i for i in ids if i not in vectors]
    if missing:
        raise DataError(f"{label}: no id {missing[0]!r} ({len(missing)} of {len(ids)} missing)")
    return np.array([vectors[i] for i in ids], np.float32).reshape(-1, dim)


def directory_size(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def stamp(fingerprint: str, dim: int, **more: object) -> JsonObject:
    """What is written into a store when it is created: which model's vectors these are."""
    return {"format": 1, "fingerprint": fingerprint, "dim": dim, **more}


def read_stamp(document: object, dim: int | None, label: str) -> JsonObject:
    """The stamp of a store. DataError when it has none, another format, or its vectors (`dim`) are not what it says."""
    if not isinstance(document, dict) or not isinstance(document.get("fingerprint"), str):
        raise DataError(f"{label}: carries no fingerprint: not made by mmtune, or its stamp was removed; build it again")
    if not isinstance(document.get("dim"), int):
        raise DataError(f"{label}: carries no fingerprint: not made by mmtune, or its stamp was removed; build it again")
    if document.get("format") != 1:
        raise DataError(f"{label}: format {document.get('format')}; this mmtune reads format 1")
    if dim != document["dim"]:
        raise DataError(f"{label}: vectors of {dim} dims, stamped {document['dim']}: written behind mmtune; build it again")
    return document


# --- metadata ----------------------------------------------------------------------------------------------------


def plain_metadata(meta: Mapping[str, object], where: str) -> JsonObject:
    """Metadata as JSON has it: NaN and infinity become null, NumPy's scalars Python's. DataError for anything else."""
    for key in meta:
        if not isinstance(key, str):
            raise DataError(f"{where}: metadata keys are strings, not {key!r}")
    return {str(_plain(k, where)): _plain(v, where) for k, v in meta.items()}


def _plain(value: object, where: str) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not _storable(value):
            raise DataError(f"{where}: metadata {value[:40]!r} holds a NUL character or half a surrogate pair")
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise DataError(f"{where}: a number of {value.bit_length()} bits in the metadata")
        return value
    if isinstance(value, Mapping):
        return plain_metadata(value, where)
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v, where) for v in value]
    raise DataError(f"{where}: metadata of type {type(value).__name__}: it must be JSON")


def _storable(string: str) -> bool:
    """Neither NUL nor an unpaired surrogate: PostgreSQL takes neither, UTF-8 not the second."""
    return "\0" not in string and encodable(string)


def document(meta: Mapping[str, object]) -> str:
    """Plain metadata as one JSON document."""
    return json.dumps(meta, ensure_ascii=False, allow_nan=False)


def typed_columns(meta: Mapping[str, object], prefix: ColumnPath = ()) -> Iterator[tuple[str, str | float | bool]]:
    """(column, value) of every value that a filter can see: a number as float, True for a list or a mapping."""
    for key, value in meta.items():
        path, kind = (*prefix, key), value_kind(value)
        if kind is not None:
            yield typed_column(kind, path), _column_value(value)
        if isinstance(value, Mapping):
            yield from typed_columns(value, path)


def _column_value(value: object) -> str | float | bool:
    if isinstance(value, str | bool):
        return value
    return float(value) if isinstance(value, int | float) else True


def typed_column(kind: str, path: ColumnPath) -> str:
    """The name of the column that holds the values of one kind at one path: of [a-z0-9_], different for different paths."""
    return kind + "".join("__" + re.sub(r"[^a-z0-9]", lambda c: f"_{ord(c[0]):x}_", key) for key in path)
