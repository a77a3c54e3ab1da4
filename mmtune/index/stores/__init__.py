"""Stores of vectors: the table of kinds, and what the author of a store needs.

A store is a class that fulfils `Store`. Name it in `build(..., store=...)` as `package.module:Class`, which is also searched
for in the working directory, or give it a short name with `register_store(name, target)`. Only the kind that is asked for is
imported.
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
}


def register_store(name: str, target: type[Store] | str) -> None:
    """Add a kind of store: its class, or "package.module:Class". Every process that opens such a collection needs the same
    registration; a `package.module:Class` in place of a name needs none."""
    plugins.register(TABLE, name, target, "store")


def store_class(kind: str) -> type[Store]:
    """The class of a kind of store. DataError for an unknown kind, with the nearest name."""
    return cast("type[Store]", plugins.resolve(TABLE, kind, "store", error=DataError))


def open_store(location: StoreLocation) -> Store:
    """The store at that location. DataError when there is none, or it is damaged."""
    return store_class(location.kind).open(location)


def create_store(location: StoreLocation, dim: int, fingerprint: str) -> Store:
    """A new empty store, stamped with the fingerprint; what was there before is replaced."""
    return store_class(location.kind).create(location, dim, fingerprint)
