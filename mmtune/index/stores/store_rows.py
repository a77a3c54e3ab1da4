"""Helpers that all stores share: validate rows and queries, record the fingerprint, map metadata to typed columns."""

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
from mmtune.runtime.format_number import check_format
from mmtune.search.vectors import normalize_rows

ID_BYTES = 1024
"""Longest id, in bytes of UTF-8, that every supported database accepts as a key."""
MAX_INTEGER = 10**300
"""Larger integers are rejected, because some databases store numbers as float64."""


def check_rows(
    ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, object]], dim: int, label: str
) -> tuple[list[str], np.ndarray, list[JsonObject]]:
    """Validate rows and return them ready to write: (ids, L2-normalised float32 vectors [N, dim], metadata as plain JSON).

    label: name of the store in error messages.

    Raises DataError for mismatched lengths, another dimension, a repeated or invalid id, and metadata that is not JSON.
    """
    ids = list(ids)
    vectors_ND = np.asarray(vectors_ND)
    if vectors_ND.ndim != 2 or len(ids) != len(vectors_ND) or len(ids) != len(meta):
        raise DataError(
            f"{label}: {len(ids)} ids, vectors of shape {vectors_ND.shape} and {len(meta)} metadata: every row needs an id, a "
            "vector and metadata"
        )
    if len(ids) and vectors_ND.shape[1] != dim:
        raise DataError(f"{label}: vectors of {vectors_ND.shape[1]} dimensions; this store holds {dim}")
    if len(set(ids)) < len(ids):
        raise DataError(f"{label}: id {_first_repeated(ids)!r} occurs twice in one upsert; ids must be unique")
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
    raise ValueError("no id is repeated")


def check_id(id: str, label: str) -> None:
    """Raises DataError when an id is empty, too long, or contains characters that a database rejects."""
    if not isinstance(id, str) or not id or not _storable(id) or len(id.encode()) > ID_BYTES:
        raise DataError(f"{label}: id {str(id)[:80]!r}: ids are 1 to {ID_BYTES} bytes of UTF-8 without NUL")


def check_name(name: str) -> str:
    """Return `name` if it is safe as a directory name and as an SQL table name. Raises DataError otherwise."""
    if not re.fullmatch(r"[a-z0-9_]{1,60}", name):
        raise DataError(f"store name {name[:80]!r}: must be 1 to 60 characters of a-z, 0-9 and _")
    return name


def check_index(index: str, label: str, search_dim: int | None, memory_mb: int | None) -> None:
    """Validate the arguments of `build` for a store without index options.

    Raises DataError for an unknown index type, and when `search_dim` or `memory_mb` is given.
    """
    if index not in INDEXES:
        raise DataError(f"{label}: no index {index!r}; choose one of {', '.join(INDEXES)}")
    for name, value in (("--search-dim", search_dim), ("--memory-mb", memory_mb)):
        if value is not None:
            raise DataError(f"{label}: {name} is supported only by the faiss store")


def check_queries(query_QD: np.ndarray, dim: int, k: int, label: str) -> np.ndarray:
    """Return the queries as L2-normalised float32 [Q, dim].

    Raises DataError for another shape, for NaN or infinity, and for k < 1.
    """
    query_QD = np.asarray(query_QD)
    if k < 1:
        raise DataError(f"{label}: k {k}: must be at least 1")
    if query_QD.ndim != 2 or query_QD.shape[1] != dim:
        raise DataError(f"{label}: queries of shape {query_QD.shape}; this store holds {dim} dimensions")
    return normalize_rows(query_QD, f"{label}: queries")


def stack_in_order(ids: Sequence[str], vectors: Mapping[str, object], dim: int, label: str) -> np.ndarray:
    """Stack fetched vectors in the order of `ids`: float32 [N, dim]. Raises DataError, with the id, when one is missing.

    vectors: {id: vector}.
    """
    missing = [i for i in ids if i not in vectors]
    if missing:
        raise DataError(f"{label}: no id {missing[0]!r} ({len(missing)} of {len(ids)} missing)")
    return np.array([vectors[i] for i in ids], np.float32).reshape(-1, dim)


def directory_size(directory: Path) -> int:
    """Return the total size in bytes of all files below a directory."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


FORMAT = 1
"""The format number of the stamp of a store."""


def stamp(fingerprint: str, dim: int, **more: object) -> JsonObject:
    """Return the stamp: the document that a store records when it is created. It names the model of the vectors."""
    return {"format": FORMAT, "fingerprint": fingerprint, "dim": dim, **more}


def read_stamp(document: object, dim: int | None, label: str) -> JsonObject:
    """Validate a stamp that was read from a store, and return it.

    document: the parsed stamp, or None when the store has none.
    dim: dimension of the vectors that the store actually holds.

    Raises DataError when the stamp is missing or damaged, has another format, or states another dimension.
    """
    if not isinstance(document, dict) or not isinstance(document.get("fingerprint"), str):
        raise DataError(f"{label}: carries no fingerprint: not made by mmtune, or its stamp was removed; build it again")
    if not isinstance(document.get("dim"), int):
        raise DataError(f"{label}: carries no fingerprint: not made by mmtune, or its stamp was removed; build it again")
    check_format(document.get("format"), FORMAT, label, DataError)
    if dim != document["dim"]:
        raise DataError(
            f"{label}: vectors of {dim} dimensions, stamped {document['dim']}: the store was changed by something other than "
            "mmtune; build it again"
        )
    return document


# --- metadata ----------------------------------------------------------------------------------------------------


def plain_metadata(meta: Mapping[str, object], where: str) -> JsonObject:
    """Convert metadata to plain JSON values: NaN and infinity become null, NumPy scalars become Python scalars.

    Raises DataError for a value that JSON cannot represent.
    """
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
            raise DataError(f"{where}: metadata {value[:40]!r} contains a NUL character or an unpaired surrogate; remove it")
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise DataError(f"{where}: an integer of {value.bit_length()} bits in the metadata is too large; store it as text")
        return value
    if isinstance(value, Mapping):
        return plain_metadata(value, where)
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v, where) for v in value]
    raise DataError(f"{where}: metadata of type {type(value).__name__}: values must be JSON types")


def _storable(string: str) -> bool:
    """Whether every store can hold the string: PostgreSQL rejects NUL, and UTF-8 cannot encode an unpaired surrogate."""
    return "\0" not in string and encodable(string)


def document(meta: Mapping[str, object]) -> str:
    """Serialise plain metadata as JSON."""
    return json.dumps(meta, ensure_ascii=False, allow_nan=False)


def typed_columns(meta: Mapping[str, object], prefix: ColumnPath = ()) -> Iterator[tuple[str, str | float | bool]]:
    """Yield (column name, value) for every metadata value that a filter can test, also inside nested mappings.

    Numbers become float. A list or a mapping becomes True, since filters can only test whether it is present.
    """
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
    """Return the name of the column for values of one kind at one path: characters a-z, 0-9 and _, unique per kind and path.

    kind: see `filters.value_kind`.
    """
    return kind + "".join("__" + re.sub(r"[^a-z0-9]", lambda c: f"_{ord(c[0]):x}_", key) for key in path)
