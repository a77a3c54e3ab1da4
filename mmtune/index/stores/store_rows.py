"""What every store asks of the rows that it takes, and how it lays metadata out in columns of one kind."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmtune.errors import DataError
from mmtune.index.query.filters import Path, kind
from mmtune.search.vectors import unit

ID_BYTES = 1024
"""The longest id, UTF-8: what every engine's key takes."""


def checked(
    ids: Sequence[str], vectors_ND: np.ndarray, meta: Sequence[Mapping[str, Any]], dim: int, place: str
) -> tuple[list[str], np.ndarray, list[dict[str, Any]]]:
    """The rows as they may be written: ids, unit float32 [N, dim], metadata as plain JSON. DataError names what is wrong."""
    ids = list(ids)
    vectors_ND = np.asarray(vectors_ND)
    if vectors_ND.ndim != 2 or len(ids) != len(vectors_ND) or len(ids) != len(meta):
        raise DataError(f"{place}: {len(ids)} ids, vectors {vectors_ND.shape} and {len(meta)} metadata: one of each a row")
    if len(ids) and vectors_ND.shape[1] != dim:
        raise DataError(f"{place}: vectors of {vectors_ND.shape[1]} dims; this store holds {dim}")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise DataError(f"{place}: id {twice!r} comes twice in one upsert")
    for id in ids:
        check_id(id, place)
    return (
        ids,
        unit(vectors_ND.reshape(len(ids), dim), place),
        [plain(m, f"{place}: id {i!r}") for i, m in zip(ids, meta, strict=True)],
    )


def check_id(id: str, place: str) -> None:
    """DataError when an id is empty, too long, or holds what a database refuses."""
    if not isinstance(id, str) or not id or not _storable(id) or len(id.encode()) > ID_BYTES:
        raise DataError(f"{place}: id {str(id)[:80]!r}: ids are 1 to {ID_BYTES} bytes of UTF-8 without NUL")


def check_name(name: str) -> str:
    """The name of a table, when it is one: it becomes a folder or stands in SQL."""
    if not re.fullmatch(r"[a-z0-9_]{1,60}", name):
        raise DataError(f"store name {name[:80]!r}: 1 to 60 of a-z, 0-9 and _")
    return name


def stamp(fingerprint: str, dim: int, **more: Any) -> dict[str, Any]:
    """What is written into a store when it is made: which model's vectors these are."""
    return {"format": 1, "fingerprint": fingerprint, "dim": dim, **more}


def read_stamp(found: Any, dim: int | None, place: str) -> dict[str, Any]:
    """The stamp of a store. DataError when it has none, another format, or its vectors (`dim`) are not what it says."""
    if not isinstance(found, dict) or not isinstance(found.get("fingerprint"), str) or not isinstance(found.get("dim"), int):
        raise DataError(f"{place}: carries no fingerprint: not made by mmtune, or its stamp was removed; build it again")
    if found.get("format") != 1:
        raise DataError(f"{place}: format {found.get('format')}; this mmtune reads format 1")
    if dim != found["dim"]:
        raise DataError(f"{place}: vectors of {dim} dims, stamped {found['dim']}: written behind mmtune; build it again")
    return found


def queries(query_QD: np.ndarray, dim: int, k: int, place: str) -> np.ndarray:
    """Unit float32 [Q, dim]. DataError for another shape, NaN or infinity, or k < 1."""
    query_QD = np.asarray(query_QD)
    if k < 1:
        raise DataError(f"{place}: k {k}: ask for one answer or more")
    if query_QD.ndim != 2 or query_QD.shape[1] != dim:
        raise DataError(f"{place}: queries of shape {query_QD.shape}; this store holds {dim} dims")
    return unit(query_QD, f"{place}: queries")


def plain(value: Any, where: str) -> Any:
    """Metadata as JSON knows it: NaN and infinity become null, NumPy's scalars Python's. DataError for anything else."""
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
        if abs(value) > 10**300:
            raise DataError(f"{where}: a number of {value.bit_length()} bits in the metadata")
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise DataError(f"{where}: metadata keys are words, not {next(k for k in value if not isinstance(k, str))!r}")
        return {plain(k, where): plain(v, where) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v, where) for v in value]
    raise DataError(f"{where}: metadata of type {type(value).__name__}: it must be JSON")


def _storable(words: str) -> bool:
    """Neither NUL nor an unpaired surrogate: PostgreSQL takes neither, UTF-8 not the second."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in words


def document(meta: Mapping[str, Any]) -> str:
    """Plain metadata as one JSON document."""
    return json.dumps(meta, ensure_ascii=False, allow_nan=False)


def leaves(meta: Mapping[str, Any], at: Path = ()) -> Iterator[tuple[str, str | float | bool]]:
    """(column, value) of every value that a filter can see: a number as float, True for a list or a mapping."""
    for key, value in meta.items():
        path, of = (*at, key), kind(value)
        if of is not None:
            yield column(of, path), float(value) if of == "n" else True if of == "j" else value
        if isinstance(value, Mapping):
            yield from leaves(value, path)


def column(of: str, path: Path) -> str:
    """A name made of [a-z0-9_] for the values of one kind at one path; different for different ones."""
    return of + "".join("__" + re.sub(r"[^a-z0-9]", lambda c: f"_{ord(c[0]):x}_", key) for key in path)
