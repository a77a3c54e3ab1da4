"""Stores of vectors: one table KIND -> "module:Class". Only the kind that is asked for is imported.

A store's class has `create(place, dim, fingerprint)` (replaces what a killed build left at that place) and `open(place)`.
"""

import difflib
import importlib
from typing import Any

from mmtune.errors import DataError
from mmtune.index.protocols import Store, StoreLocation

TABLE = {
    "faiss": "mmtune.index.stores.faiss_store:FaissStore",
    "lancedb": "mmtune.index.stores.lancedb_store:LanceStore",
    "pgvector": "mmtune.index.stores.pgvector_store:PgvectorStore",
    "qdrant": "mmtune.index.stores.qdrant_store:QdrantStore",
}


def _kind(name: str) -> Any:
    if name not in TABLE:
        near = difflib.get_close_matches(name, TABLE, 1)
        raise DataError(f"no store {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TABLE)}"))
    module, _, attribute = TABLE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def open_store(place: StoreLocation) -> Store:
    """The store that lies there. DataError when there is none, or it is not whole."""
    return _kind(place.kind).open(place)


def create_store(place: StoreLocation, dim: int, fingerprint: str) -> Store:
    """A new empty store, stamped with the fingerprint; what lay there before is replaced."""
    return _kind(place.kind).create(place, dim, fingerprint)
