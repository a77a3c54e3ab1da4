"""The contract of a store: the vectors of one (collection, version, modality), with ids and metadata. See `Store`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from mmtune.index.query.filters import Filter

INDEXES = ("auto", "flat", "hnsw", "ivfpq")
"""Kinds of index that `Store.build` understands; "auto" is exact up to a size that the store measured, approximate above."""


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Where the vectors of one (collection, version, modality) are stored.

    kind: a key of the store table, or `package.module:Class`; directory: for stores that keep files (the store makes it);
    url: of a database, None for embedded stores; name: unique per (collection, version, modality), made of [a-z0-9_], at most
    60 characters: the name of a table or a collection in that database.
    """

    kind: str
    directory: Path
    url: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a store: `score` is the inner product of unit vectors, i.e. the cosine."""

    id: str
    score: float
    meta: Mapping[str, object]


class Store(Protocol):
    """Unit float32 vectors [D] by item id, with metadata; similarity is the inner product.

    The fingerprint of the model is stamped into the store when it is created and read back when it is opened. There is one
    writer at a time (the collection's lock); any number of readers, in this and in other processes, search meanwhile. An open
    reader sees what another process wrote at its next search, or at the latest when it is opened again.
    """

    kind: str
    fingerprint: str
    dim: int

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "Store":
        """A new empty store, stamped with the fingerprint; what a killed build left at that location is replaced."""
        ...

    @classmethod
    def open(cls, location: StoreLocation) -> "Store":
        """The store at that location. DataError when there is none, or it is damaged."""
        ...

    def upsert(self, ids: Sequence[str], vectors_ND: "np.ndarray", meta: Sequence[Mapping[str, object]]) -> None:
        """Insert or replace by id; idempotent; durable when it returns. DataError for another dim, lengths, or ids twice."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove by id; unknown ids are ignored; durable when it returns."""
        ...

    def build(
        self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None
    ) -> Mapping[str, object]:
        """Build the index (one of INDEXES) over the vectors; returns {"index": what was built, settings...}; durable then.

        search_dim: search by the first so many dimensions, re-rank by all; memory_mb: what building may take. DataError for an
        option that this kind of store does not have.
        """
        ...

    def search(self, query_QD: "np.ndarray", k: int, where: "Filter | None" = None) -> list[list[Hit]]:
        """The k best of each query among the items that `where` admits: score descending, ties by id descending."""
        ...

    def fetch(self, ids: Sequence[str]) -> "np.ndarray":
        """Stored vectors [N, D] in the order of `ids`; DataError names a missing id."""
        ...

    def ids(self) -> list[str]:
        """Every id, in any order."""
        ...

    def __len__(self) -> int: ...

    def size(self) -> int:
        """Bytes on disk or in the database."""
        ...

    def drop(self) -> None:
        """Remove the vectors for good; the store is unusable then."""
        ...

    def close(self) -> None:
        """Release handles; the vectors stay."""
        ...
