"""Rows -> items: identical content is one item whose rows and groups are united, as query and as candidate."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.search.exact import tie_order, unit


def take(e: Embeddings, rows: np.ndarray) -> Embeddings:
    """The rows at positions `rows`, in that order."""
    labels = {k: np.asarray(v)[rows] for k, v in e.labels.items()}
    queries = None if e.queries is None else e.queries[rows]
    return Embeddings([e.ids[i] for i in rows], [e.groups[i] for i in rows], labels, e.vectors[rows], e.fingerprint, queries)


@dataclass
class Ragged:
    """A list of int64 lists: values[start[i]:start[i+1]] belong to i."""

    start: np.ndarray
    values: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.start[i] : self.start[i + 1]]

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.start)

    @staticmethod
    def of(owner: np.ndarray, values: np.ndarray, size: int) -> "Ragged":
        """From pairs (owner, value) with duplicates dropped; each list ascending."""
        order = np.lexsort((values, owner))
        owner, values = owner[order], values[order]
        if len(owner):
            new = np.concatenate([[True], (owner[1:] != owner[:-1]) | (values[1:] != values[:-1])])
            owner, values = owner[new], values[new]
        return Ragged(np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=size))]).astype(np.int64), values)


class Picked:
    """Rows `at` [M] of an array [N, D], gathered when they are asked for: no second copy of a million vectors."""

    def __init__(self, rows_ND: np.ndarray, at: np.ndarray):
        self.rows, self.at, self.shape = rows_ND, at, (len(at), rows_ND.shape[1])

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, key: "slice | np.ndarray") -> np.ndarray:
        return self.rows[self.at[key]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.rows[self.at].astype(dtype or np.float32, copy=False)


@dataclass
class Items:
    """M items of one modality in descending id order; an item's id is the smallest of its rows' ids.

    rows: positions in the Embeddings it came from; row_labels, group_labels: what relevance is decided by; queries: as
    in Embeddings.
    """

    name: str
    ids: list[str]
    vectors: np.ndarray | Picked
    rows: Ragged
    row_labels: Ragged
    group_labels: Ragged
    row_ids: list[str] = field(repr=False, default_factory=list)
    queries: "np.ndarray | Picked | None" = field(repr=False, default=None)

    @property
    def query_vectors(self) -> "np.ndarray | Picked":
        """The vectors of the query side of a direction."""
        return self.vectors if self.queries is None else self.queries

    def __len__(self) -> int:
        return len(self.ids)


def names_to_labels(names: "list[str] | list[str | None]") -> np.ndarray:
    """int64 labels [N], equal names alike, None -> 0; the same in every call (SHA-256), so labels compare across corpora."""
    import hashlib

    known = {n: int.from_bytes(hashlib.sha256(n.encode()).digest()[:8], "little", signed=True) or 1 for n in set(names) if n}
    return np.array([known.get(n, 0) for n in names], np.int64)  # type: ignore[arg-type]


def unite(name: str, e: Embeddings) -> Items:
    """The items of modality `name`. Raises DataError for lengths that differ, repeated ids and vectors that are no numbers."""
    n = len(e.ids)
    if len(e.vectors) != n or len(e.groups) != n or any(len(v) != n for v in e.labels.values()):
        raise DataError(f"{name}: {n} ids, {len(e.vectors)} vectors, {len(e.groups)} groups; they must be one a row")
    down = tie_order(e.ids)
    for a, b in zip(down[:-1], down[1:], strict=True):
        if e.ids[a] == e.ids[b]:
            raise DataError(f"{name}: the row id {e.ids[a]!r} occurs twice; ids must be unique")
    content = np.asarray(e.labels[name], np.int64) if name in e.labels else np.zeros(n, np.int64)
    _, same = np.unique(content, return_inverse=True)
    same = np.where(content == 0, same.max(initial=0) + 1 + np.arange(n), same)  # no content label: an item of its own
    # Walk rows by id ascending, so that the first row of a content gives the item its id and its vector.
    up = down[::-1]
    _, first, item_up = np.unique(same[up], return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(-first, kind="stable")] = np.arange(len(first))  # descending id of the representative
    head = up[np.sort(first)[::-1]]
    item = np.empty(n, np.int64)
    item[up] = place[item_up]

    def one_each(x_ND: np.ndarray) -> np.ndarray | Picked:
        x_ND = unit(x_ND, name)
        return x_ND if np.array_equal(head, np.arange(n)) else Picked(x_ND, head)

    return Items(
        name,
        [e.ids[i] for i in head],
        one_each(e.vectors),
        Ragged.of(item, np.arange(n), len(head)),
        _labels(item, e.labels.get("id"), e.ids, len(head)),
        _labels(item, e.labels.get("group"), e.groups, len(head)),
        e.ids,
        None if e.queries is None else one_each(e.queries),
    )


def _labels(item: np.ndarray, labels: "np.ndarray | None", names: "list[str] | list[str | None]", size: int) -> Ragged:
    values = names_to_labels(names) if labels is None else np.asarray(labels, np.int64)
    keep = values != 0
    return Ragged.of(item[keep], values[keep], size)
