"""Rows -> items: rows of one modality with identical content are one item, as query and as candidate.

Items are numbered by DESCENDING id, so that an item's number is its place among ties (see `mmtune.search.tie_order`), and no
result depends on the order of the rows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.relevance.ragged import Ragged
from mmtune.search.vectors import GatheredRows, normalize_rows

CHECK_BLOCK = 65536
"""Rows that are checked at a time."""


@dataclass
class Items:
    """M items of one modality, from N rows of an Embeddings. An item's id is the smallest of its rows' ids.

    vectors [M, D] of unit length; queries [M, D] the items' vectors as queries, None where they are the same; head [M]: the
    row that gives an item its id and vector; rows: item -> row numbers; of_row [N]: row -> item; labels[kind] int64 [N]: what
    positives are decided by, as in Embeddings, always with "id" and "group"; row_ids [N].
    """

    name: str
    ids: list[str]
    vectors: np.ndarray | GatheredRows
    head: np.ndarray
    rows: Ragged
    of_row: np.ndarray
    labels: dict[str, np.ndarray] = field(repr=False)
    row_ids: list[str] = field(repr=False)
    queries: np.ndarray | GatheredRows | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return self.vectors.shape[1]

    @property
    def query_vectors(self) -> np.ndarray | GatheredRows:
        """The vectors of the query side of a direction."""
        return self.vectors if self.queries is None else self.queries

    @property
    def labelled(self) -> np.ndarray:
        """bool [M]: every row of the item has a group."""
        out = np.ones(len(self), bool)
        out[self.of_row[self.labels["group"] == 0]] = False
        return out

    def as_queries(self) -> "Items":
        """The same items whose `vectors` are those of the query side."""
        return replace(self, vectors=self.query_vectors)

    def regrouped(self, group: np.ndarray) -> "Items":
        """The same items with other group labels int64 [N]."""
        return replace(self, labels={**self.labels, "group": group})


def take_rows(e: Embeddings, rows: np.ndarray) -> Embeddings:
    """The rows at positions `rows`, in that order."""
    labels = {k: np.asarray(v)[rows] for k, v in e.labels.items()}
    queries = None if e.queries is None else e.queries[rows]
    return Embeddings([e.ids[i] for i in rows], [e.groups[i] for i in rows], labels, e.vectors[rows], e.fingerprint, queries)


def names_to_labels(names: Sequence[str | None]) -> np.ndarray:
    """int64 labels [N]: equal names have equal labels in every call (SHA-256), so labels compare across corpora; None -> 0."""
    known = {n: int.from_bytes(hashlib.sha256(n.encode()).digest()[:8], "little", signed=True) or 1 for n in set(names) if n}
    return np.array([known.get(n, 0) if n else 0 for n in names], np.int64)


def unique_items(name: str, e: Embeddings, repeated_ids: bool = False) -> Items:
    """The items of modality `name`.

    repeated_ids: a row that several sources of a mix hold is the same item; otherwise ids must be unique. Raises DataError for
    lengths that differ, for one id with two contents, and for vectors with NaN or infinity.
    """
    n = len(e.ids)
    if len(e.vectors) != n or len(e.groups) != n or any(len(v) != n for v in e.labels.values()):
        raise DataError(f"{name}: {n} ids, {len(e.vectors)} vectors, {len(e.groups)} groups; they must be one a row")
    content = np.asarray(e.labels.get(name, np.zeros(n, np.int64)), np.int64)
    up = np.array(sorted(range(n), key=e.ids.__getitem__), np.int64)
    _check_ids(name, e.ids, content, up, repeated_ids)
    _, same = np.unique(content, return_inverse=True)
    same = np.where(content == 0, same.max(initial=0) + 1 + np.arange(n), same)  # no content label: an item of its own
    # Rows are visited by ascending id, so that the first row of a content gives the item its id and its vector.
    _, first, item_up = np.unique(same[up], return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(-first, kind="stable")] = np.arange(len(first))  # by descending id
    of_row = np.empty(n, np.int64)
    of_row[up] = number[item_up]
    head = up[np.sort(first)[::-1]]

    def of_items(x_ND: np.ndarray) -> np.ndarray | GatheredRows:
        x_ND = normalize_rows(x_ND, name)
        return x_ND if np.array_equal(head, np.arange(n)) else GatheredRows(x_ND, head)

    labels = {k: np.asarray(v, np.int64) for k, v in e.labels.items()}
    labels.setdefault("id", names_to_labels(e.ids))
    labels.setdefault("group", names_to_labels(e.groups))
    rows = Ragged.of(of_row, np.arange(n), len(head))
    queries = None if e.queries is None else of_items(e.queries)
    return Items(name, [e.ids[i] for i in head], of_items(e.vectors), head, rows, of_row, labels, e.ids, queries)


def _check_ids(name: str, ids: list[str], content: np.ndarray, up: np.ndarray, repeated_ids: bool) -> None:
    for a, b in zip(up[:-1].tolist(), up[1:].tolist(), strict=True):
        if ids[a] != ids[b]:
            continue
        if not repeated_ids:
            raise DataError(f"{name}: the row id {ids[a]!r} occurs twice; ids must be unique")
        if not content[a] == content[b] != 0:
            raise DataError(f"{name}: the row id {ids[a]!r} occurs twice, with other content; ids must be unique")


def check_unit_vectors(name: str, e: Embeddings) -> None:
    """DataError for vectors that are not float32 [N, D], hold NaN, are zero, or not of unit length; names the first rows."""
    v = e.vectors
    if v.ndim != 2 or v.dtype != np.float32 or not v.flags.c_contiguous:
        raise DataError(f"{name}: vectors must be a contiguous float32 array [rows, dimensions]; got {v.dtype} {v.shape}")
    for start in range(0, len(v), CHECK_BLOCK):
        block = v[start : start + CHECK_BLOCK]
        squares = np.einsum("nd,nd->n", block, block)
        for wrong, problem, fix in (
            (~np.isfinite(squares), "hold NaN or infinity", "the model or its input is broken"),
            (squares == 0, "are zero vectors, which have no direction", "leave these rows out or repair their content"),
            (np.abs(squares - 1) > 1e-3, "are not of unit length", "divide each by its length"),
        ):
            at = np.flatnonzero(wrong)
            if len(at):
                some = ", ".join(repr(e.ids[start + i]) for i in at[:3])
                rows = f"rows {start}..{start + len(block) - 1}"
                raise DataError(f"{name}: {len(at)} of {rows} {problem} (first: {some}); {fix}")
