"""Query values: decoded, with the identity of their content, and the cache of their vectors."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.data.identity_labels import stable_label
from mmtune.errors import DataError, Rejected

CacheKey = tuple[str, str, int]
"""(fingerprint, modality, label of the content)."""


class QueryContent(NamedTuple):
    """A decoded query value; data: its bytes, where it came as bytes; label: the identity of that content."""

    signal: Signal
    data: bytes | None = None
    label: int = 0


def decode_query(modality: str, value: Signal) -> QueryContent:
    """Decode a query value. Bytes are the content; a string is a path, or the value itself where the modality is language;
    anything else is what the modality's `coerce` takes. DataError names the modality."""
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


class QueryVectorCache:
    """Vectors of queries by (fingerprint, modality, content), the least recently used are dropped. Threads may share one."""

    def __init__(self, size: int = 4096):
        self.size, self._vectors, self._guard = size, OrderedDict[CacheKey, np.ndarray](), Lock()

    def get(self, key: CacheKey) -> np.ndarray | None:
        """The vector [D], or None."""
        with self._guard:
            vector_D = self._vectors.get(key)
            if vector_D is not None:
                self._vectors.move_to_end(key)
            return vector_D

    def put(self, key: CacheKey, vector_D: np.ndarray) -> None:
        """Store a vector; the least recently used one beyond `size` is dropped."""
        with self._guard:
            self._vectors[key] = vector_D
            while len(self._vectors) > self.size:
                self._vectors.popitem(last=False)

    def clear(self) -> None:
        """Drop all vectors."""
        with self._guard:
            self._vectors.clear()
