"""What the lifecycle room agrees on: a place for vectors, a store of them, a hit, and the answer of a collection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from mmtune.index.query.filters import Filter

INDEXES = ("auto", "flat", "hnsw", "ivfpq")
"""Kinds of index that `Store.build` understands; "auto" is exact up to a size that the store measured, approximate above."""


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Where the vectors of one (collection, version, modality) lie.

    directory: for what lies in files (made by the store); url: of a database, None for embedded kinds; name: unique per
    (collection, version, modality), made of [a-z0-9_], at most 60 characters: a table or a collection of that database.
    """

    kind: str
    directory: Path
    url: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a store: `score` is the inner product of unit vectors (cosine), float."""

    id: str
    score: float
    meta: Mapping[str, Any]


class Store(Protocol):
    """The vectors of one (version, modality): unit float32 [D] by item id, with metadata; similarity is the inner product.

    The fingerprint is stamped into the store when it is created and read back from it when it is opened. Writers are one at a
    time (the collection's lock); any number of readers, in this and in other processes, search meanwhile. An open reader sees
    what another process wrote at its next search, or at the latest when it is opened again.
    """

    kind: str
    fingerprint: str
    dim: int

    def upsert(self, ids: Sequence[str], vectors_ND: "np.ndarray", meta: Sequence[Mapping[str, Any]]) -> None:
        """Insert or replace by id; idempotent; durable when it returns. DataError for another dim, lengths, or ids twice."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove by id; unknown ids are ignored; durable when it returns."""
        ...

    def build(self, index: str = "auto") -> dict[str, Any]:
        """Make the index (one of INDEXES) over what is there; returns {"index": what was built, ...settings}; durable then."""
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


@dataclass(frozen=True, slots=True)
class SearchResponse:
    """What a search returns. results: {"id", "score", "found" (the modality that matched), "group", "meta"}, best first.

    Everything in it comes from one version, whose name and fingerprint it carries.
    """

    version: str
    fingerprint: str
    results: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    query: str = ""
    """An id of this search, for feedback."""

    @property
    def ids(self) -> list[str]:
        """Item ids, best first."""
        return [r["id"] for r in self.results]
