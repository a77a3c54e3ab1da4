"""Vector stores: the table of store kinds, and everything that the author of a new store needs to import.

A store is a class that implements the `Store` protocol. To use your own, pass `build(..., store="package.module:Class")`; the
working directory is on the import path. Or give the class a short name with `register_store(name, target)`. The module of a
store is imported only when that store is used.
"""

from typing import cast

from mmtune.errors import DataError
from mmtune.index.query.filters import And, Compare, Filter, In, IsNull, Not, Or
from mmtune.index.stores.store_protocol import INDEXES, Hit, Store, StoreLocation
from mmtune.runtime import plugins

__all__ = [
    "INDEXES",
    "TABLE",
    "And",
    "Compare",
    "Filter",
    "Hit",
    "In",
    "IsNull",
    "Not",
    "Or",
    "Store",
    "StoreLocation",
    "create_store",
    "open_store",
    "register_store",
    "store_class",
]

TABLE: dict[str, type[Store] | str] = {
    "faiss": "mmtune.index.stores.faiss_store:FaissStore",
    "lancedb": "mmtune.index.stores.lancedb_store:LanceStore",
    "pgvector": "mmtune.index.stores.pgvector_store:PgvectorStore",
    "qdrant": "mmtune.index.stores.qdrant_store:QdrantStore",
    "qdrant-edge": "mmtune.index.stores.qdrant_edge_store:QdrantEdgeStore",
}


def register_store(name: str, target: type[Store] | str) -> None:
    """Register a store kind under `name`. target: the class, or "package.module:Class".

    Every process that opens a collection with this store must register the same name. A collection that was built with
    `store="package.module:Class"` needs no registration.
    """
    plugins.register(TABLE, name, target, "store")


def store_class(kind: str) -> type[Store]:
    """Return the class of a store kind. Raises DataError, with the most similar known name, for an unknown kind."""
    return cast("type[Store]", plugins.resolve(TABLE, kind, "store", error=DataError))


def open_store(location: StoreLocation) -> Store:
    """Open the store at `location`. Raises DataError when no store exists at that location, or when it is damaged."""
    return store_class(location.kind).open(location)


def create_store(location: StoreLocation, dim: int, fingerprint: str) -> Store:
    """Create an empty store at `location` that records the model fingerprint. An existing store at `location` is replaced."""
    return store_class(location.kind).create(location, dim, fingerprint)
