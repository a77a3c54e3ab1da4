"""Decode query values, and cache the embeddings of queries by their content hash."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.data.identity_labels import stable_label
from mmtune.errors import DataError, Rejected

CacheKey = tuple[str, str, int]
"""(fingerprint, modality, content hash)."""


class QueryContent(NamedTuple):
    """A decoded query value.

    data: the encoded bytes; None when the caller passed a decoded value.
    label: 64-bit content hash of `data`.
    """

    signal: Signal
    data: bytes | None = None
    label: int = 0


def decode_query(modality: str, value: Signal) -> QueryContent:
    """Decode a query value.

    value: bytes are encoded content. A string is the text itself for text modalities, and otherwise a file path. Anything else
        is passed to the modality's `coerce`, e.g. a PIL image or (array, sample_rate).

    Raises DataError, naming the modality, when the value cannot be read or decoded.
    """
    kind = modalities.get(modality)
    try:
        if isinstance(value, str | Path) and not kind.language:
            value = Path(value).read_bytes()
        elif isinstance(value, str):
            value = value.encode("utf-8", "replace")
        if isinstance(value, bytes):
            return QueryContent(kind.decode(value), value, stable_label(kind.content_key(value)))
        return QueryContent(kind.coerce(value))
    except OSError as e:
        raise DataError(f"{value}: {e.strerror}") from None
    except Rejected as e:
        raise DataError(f"the query's {modality}: {e}") from None


def check_one_query(query: Mapping[str, Signal], item: str | None) -> None:
    """Raise DataError unless exactly one query is given: a value in `query`, or an item."""
    count = len(query) + (item is not None)
    if count != 1:
        names = ", ".join(modalities.names())
        raise DataError(f"search: give exactly one query, either a value of {names} or an item; got {count}")


class QueryVectorCache:
    """Thread-safe LRU cache of query embeddings, keyed by (fingerprint, modality, content hash)."""

    def __init__(self, size: int = 4096):
        self.size, self._vectors, self._guard = size, OrderedDict[CacheKey, np.ndarray](), Lock()

    def get(self, key: CacheKey) -> np.ndarray | None:
        """Return the cached vector [D], or None."""
        with self._guard:
            vector_D = self._vectors.get(key)
            if vector_D is not None:
                self._vectors.move_to_end(key)
            return vector_D

    def put(self, key: CacheKey, vector_D: np.ndarray) -> None:
        """Cache a vector [D]. When there are more than `size` vectors, the least recently used one is dropped."""
        with self._guard:
            self._vectors[key] = vector_D
            while len(self._vectors) > self.size:
                self._vectors.popitem(last=False)

    def clear(self) -> None:
        """Remove all vectors."""
        with self._guard:
            self._vectors.clear()
