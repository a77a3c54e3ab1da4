"""The `Store` protocol. One store holds the vectors, ids and metadata of one (collection, version, modality)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from mmtune.index.query.filters import Filter

INDEXES = ("auto", "flat", "hnsw", "ivfpq")
"""Index types that `Store.build` accepts. "auto" means exact search up to a size that each kind of store defines, and an
approximate index above that size."""


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Where the vectors of one (collection, version, modality) are stored.

    kind: a registered store name, or `package.module:Class`.
    directory: directory for stores that keep files; the store creates it.
    url: URL of the database; None for stores that need no database.
    name: name of the table or collection in the database. It is unique per (collection, version, modality) and consists of
        at most 60 characters of a-z, 0-9 and _.
    """

    kind: str
    directory: Path
    url: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search in a store. score: cosine similarity (the inner product of L2-normalised vectors)."""

    id: str
    score: float
    meta: Mapping[str, object]


class Store(Protocol):
    """L2-normalised float32 vectors [D] by item id, with metadata. Similarity is the inner product.

    The store records the fingerprint of the model when it is created, and reads the fingerprint back when it is opened.
    The collection's write lock ensures that there is one writer at a time. Any number of readers, in this and in other
    processes, may search during a write. A reader sees what another process wrote at its next search, or at the latest after
    it has opened the store again.
    """

    kind: str
    fingerprint: str
    dim: int

    @classmethod
    def create(cls, location: StoreLocation, dim: int, fingerprint: str) -> "Store":
        """Create an empty store that records the fingerprint. Whatever is stored at `location` already is replaced."""
        ...

    @classmethod
    def open(cls, location: StoreLocation) -> "Store":
        """Open the store at `location`. Raises DataError when no store exists at that location, or when it is damaged."""
        ...

    def upsert(self, ids: Sequence[str], vectors_ND: "np.ndarray", meta: Sequence[Mapping[str, object]]) -> None:
        """Insert or replace rows by id. Idempotent; the rows are durable when this returns.

        Raises DataError for vectors of another dimension, for arguments of different lengths, and for a repeated id.
        """
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows by id; unknown ids are ignored. The removal is durable when this returns."""
        ...

    def build(
        self, index: str = "auto", *, search_dim: int | None = None, memory_mb: int | None = None
    ) -> Mapping[str, object]:
        """Build a search index over the vectors. Returns {"index": the index type that was built, and its settings}.

        The index is durable when this returns.

        index: one of INDEXES.
        search_dim: search with the first `search_dim` dimensions, then re-rank with all dimensions.
        memory_mb: memory limit for building the index, in MB.

        Raises DataError for an option that this kind of store does not support.
        """
        ...

    # A store may also have `compact(self) -> None`: rewrite its files or tables without the bytes of deleted and replaced rows.
    # `mmtune index erase` and `mmtune index compact --full` call it; for a store without it they call `build`. It may have
    # `reclaim(self) -> str`: the same for `mmtune index compact`, without blocking searches, and bytes of deleted rows may stay
    # in files; returns one line that says what was done, or why nothing was to be done. A store that keeps files may have `damaged_files(self) -> list[str]`: one line per file whose checksum is wrong, for `mmtune index verify`.
    # A store of a database that other clients read may have `alias: str | None` and `publish(self) -> None`: let that alias name this
    # store in the database; `promote` and `rollback` call it for the version that becomes live.
    # A store of a database may have `probe(self) -> None`: raise StoreUnavailable if the database does not answer, for /ready.

    def search(self, query_QD: "np.ndarray", k: int, where: "Filter | None" = None) -> list[list[Hit]]:
        """Return the k best items per query that match the filter `where`, by score descending, ties by id descending."""
        ...

    def fetch(self, ids: Sequence[str]) -> "np.ndarray":
        """Return the stored vectors [N, D] in the order of `ids`. Raises DataError, with the id, when an id is missing."""
        ...

    def ids(self) -> list[str]:
        """Return all ids, in no particular order."""
        ...

    def __len__(self) -> int: ...

    def size(self) -> int:
        """Return the size in bytes, on disk or in the database."""
        ...

    def drop(self) -> None:
        """Delete the store and its vectors permanently. The object must not be used afterwards."""
        ...

    def close(self) -> None:
        """Release file handles and connections. The stored vectors are kept."""
        ...
