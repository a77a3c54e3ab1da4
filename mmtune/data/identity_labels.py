"""Ids and groups as strings, and identity labels: 63-bit integers, equal for equal ids, groups or contents, on every machine and
in every dataset."""

import json
import math
import re
import unicodedata
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

WHOLE_FLOAT = re.compile(r"-?\d{1,15}\.0")
"""How pandas spells a whole number of a column with gaps."""


def identity_string(value: object) -> str | None:
    """An id or group as a string, None when empty: the same for every spelling of the same thing.

    Composed and decomposed Unicode are one (NFC), white space around it is dropped, and whole numbers have no fraction: 10.0 and
    "10.0", as pandas writes a column of integers with gaps, are "10". Lists and objects are their JSON.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, dict | list | bool):
        value = json.dumps(value, ensure_ascii=False)
    # JSON may spell half a surrogate pair, which no UTF-8 can hold
    string = unicodedata.normalize("NFC", str(value).encode("utf-8", "replace").decode()).strip()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return (string[:-2] if WHOLE_FLOAT.fullmatch(string) else string) or None


def identity_strings(column: "pa.ChunkedArray") -> list[str | None]:
    """A column of ids, strings or numbers, each as `identity_string`."""
    strings = {value: identity_string(value) for value in column.unique().to_pylist()}
    return [strings.get(value) for value in column.to_pylist()]


def decode_name(name: str) -> str:
    """A file's name whose bytes may not be UTF-8 (surrogates stand for them): then it is read as Windows-1252, or Latin-1."""
    if not any("\udc80" <= c <= "\udcff" for c in name):
        return name
    data = name.encode("utf-8", "surrogateescape")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def shared_group(id: str, content: bytes) -> str:
    """The group of the rows that one source row with several values becomes, where it names none: its id, and a hash of its
    content, so that the first rows of two unrelated datasets are not one group."""
    return f"{id}~{blake2b(content, digest_size=4).hexdigest()}"


def stable_label(data: bytes) -> int:
    """A positive 63-bit number for `data` (blake2b): equal data, equal label. Never 0, which means "none"."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1 or 1


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014) on uint64: a random-looking number of each number."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix_labels(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """Labels of pairs of labels, int64 [N] (mixed by `splitmix64`, so that pairs of equal sum do not collide)."""
    with np.errstate(over="ignore"):
        x = a_N.astype(np.uint64) ^ (b_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        x = splitmix64(x) >> np.uint64(1)
    return np.where(x == 0, np.uint64(1), x).astype(np.int64)


def first_occurrences(labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first [U], inverse [N]): the position where each distinct label occurs first, ascending, and for each of the N positions the
    number of its label in that list."""
    _, first, inverse = np.unique(labels_N, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]
