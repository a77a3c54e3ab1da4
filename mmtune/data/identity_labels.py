"""Normalise ids and groups to strings, and compute identity labels.

An identity label is a 63-bit integer hash of an id, group or content. Equal inputs have equal labels on every machine and in every
dataset.
"""

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
"""A whole number with the fraction .0, as pandas writes integers of a column in which values are missing."""


def identity_string(value: object) -> str | None:
    """Convert an id or group to a normalised string; None if it is empty or NaN.

    Unicode is normalised to NFC, and surrounding white space is removed. Whole numbers lose their fraction: 10.0 and "10.0" become
    "10". Lists, objects and booleans are converted to JSON.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, dict | list | bool):
        value = json.dumps(value, ensure_ascii=False)
    # "replace", because JSON can contain half of a surrogate pair, which UTF-8 cannot encode
    string = unicodedata.normalize("NFC", str(value).encode("utf-8", "replace").decode()).strip()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return (string[:-2] if WHOLE_FLOAT.fullmatch(string) else string) or None


def identity_strings(column: "pa.ChunkedArray") -> list[str | None]:
    """Apply `identity_string` to each value of a column of ids or groups."""
    strings = {value: identity_string(value) for value in column.unique().to_pylist()}
    return [strings.get(value) for value in column.to_pylist()]


def decode_name(name: str) -> str:
    """Repair a path that is not UTF-8 by decoding each of its bad parts as Windows-1252 or, if that fails, Latin-1.

    Python marks the undecodable bytes of such a path by surrogate characters. Other paths are returned unchanged.
    """
    return "/".join(_decode_part(part) for part in name.split("/"))


def _decode_part(name: str) -> str:
    if not any("\udc80" <= c <= "\udcff" for c in name):
        return name
    data = name.encode("utf-8", "surrogateescape")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def shared_group(id: str, content: bytes) -> str:
    """Make a group for the rows that are created from one source row with several values, if the source row has no group.

    The group contains a hash of the content, because ids such as "1" occur in unrelated datasets.
    """
    return f"{id}~{blake2b(content, digest_size=4).hexdigest()}"


def stable_label(data: bytes) -> int:
    """Hash bytes to a positive 63-bit label (blake2b). Never returns 0, which means "no label"."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1 or 1


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Hash each uint64 number with the finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix_labels(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """Combine two arrays of labels [N] elementwise to labels of the pairs, int64 [N]."""
    with np.errstate(over="ignore"):
        x = a_N.astype(np.uint64) ^ (b_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        x = splitmix64(x) >> np.uint64(1)
    return np.where(x == 0, np.uint64(1), x).astype(np.int64)


_MASK = (1 << 64) - 1


def mix_label(a: int, b: int) -> int:
    """Like `mix_labels`, for two single labels."""
    x = a ^ (b * 0x9E3779B97F4A7C15 & _MASK)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return (x ^ (x >> 31)) >> 1 or 1


def first_occurrences(labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the U distinct labels among N labels. Returns (first, inverse).

    first: [U], ascending, the positions at which a distinct label occurs for the first time
    inverse: [N], for each position the index in `first` of its label
    """
    _, first, inverse = np.unique(labels_N, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]
