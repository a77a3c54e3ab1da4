"""Databases from which vectors are adopted. They are only read.

A source of your own is a class with these attributes and methods, added by `register_vector_source` or named as
"package.module:Class".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.runtime import plugins

BATCH = 1000
"""Rows that are read at once."""


@dataclass(frozen=True)
class VectorRows:
    """A batch of rows. ids: [N]; vectors: float32 [N, D]; payloads: [N], the other columns of each row, as JSON."""

    ids: list[str]
    vectors: np.ndarray
    payloads: list[JsonObject]


class VectorSource(Protocol):
    """A table of ids, vectors and payloads.

    kind: kind of store whose default it is, e.g. "pgvector"
    label: what messages call it, without passwords
    skipped: {reason: number of rows that have no usable vector}, complete after `rows`
    """

    kind: str
    label: str
    skipped: dict[str, int]

    def __init__(self, url: str, table: str, vector: str | None, id: str | None):
        """vector: column or name of the vectors, if there are several; id: column with the ids, if it is not the usual one."""
        ...

    def rows(self) -> Iterator[VectorRows]:
        """Yield all rows. Raises DataError if there is no such table or column, StoreUnavailable if the database is away."""
        ...


SOURCES: "dict[str, type[VectorSource] | str]" = {
    "pgvector": "mmtune.index.adopt.pgvector_source:PgvectorSource",
    "qdrant": "mmtune.index.adopt.qdrant_source:QdrantSource",
}
"""{source name: class, or "package.module:Class"}"""


def register_vector_source(name: str, source: "type[VectorSource] | str") -> None:
    """Add a source, for `Collection.adopt(source=name)` and `mmtune index adopt --from name`."""
    plugins.register(SOURCES, name, source, "vector source")


def find_source(name: str) -> "type[VectorSource]":
    """Return the class of a source. Raises DataError, with the most similar known name, for an unknown one."""
    return cast("type[VectorSource]", plugins.resolve(SOURCES, name, "vector source", error=DataError))


def usable_rows(
    ids: list[object], vectors: list[object], payloads: list[JsonObject], dim: int | None, skipped: dict[str, int]
) -> VectorRows:
    """Return the rows that have an id and a finite vector of `dim` numbers (None: that of the first); count the others.

    skipped: {reason: number of rows}; changed in place
    """
    kept_ids, kept, kept_payloads = [], [], []
    for id, vector, payload in zip(ids, vectors, payloads, strict=True):
        reason = ""
        array = np.zeros(0, np.float32) if vector is None else np.asarray(vector, np.float32).reshape(-1)
        dim = dim or len(array) or None
        if id is None or str(id) == "":
            reason = "no id"
        elif vector is None:
            reason = "no vector"
        elif len(array) != dim:
            reason = f"vector of {len(array)} numbers, not {dim}"
        elif not np.isfinite(array).all() or not array.any():
            reason = "vector of zeros, or not finite"
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        kept_ids.append(str(id))
        kept.append(array)
        kept_payloads.append(payload)
    return VectorRows(kept_ids, np.stack(kept) if kept else np.zeros((0, dim or 0), np.float32), kept_payloads)
