"""Merge rows of one modality that have identical content into one item, which serves as a query and as a candidate.

Items are numbered by DESCENDING id. Ties between equal scores are broken by descending id too (see
`mmtune.search.tie_order`), so the smaller item number wins a tie, and no result depends on the order of the rows.
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
"""Number of rows checked per block, which limits memory."""


@dataclass
class Items:
    """M items of one modality, made from the N rows of an `Embeddings`. An item's id is the smallest of its rows' ids.

    name: the modality
    ids: M item ids, descending
    vectors: float32 [M, D], L2-normalised
    head: int64 [M], the row that gives each item its id and its vector
    rows: the row numbers of each item
    of_row: int64 [N], the item of each row
    labels: {kind: int64 [N]}, the labels that decide which items are positives, as in `Embeddings`; always has "id" and "group"
    row_ids: N row ids
    queries: float32 [M, D], the items' vectors when they are used as queries; None when `vectors` are used for queries too
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
        """Dimension of the vectors."""
        return self.vectors.shape[1]

    @property
    def query_vectors(self) -> np.ndarray | GatheredRows:
        """The vectors to use when the items are queries."""
        return self.vectors if self.queries is None else self.queries

    @property
    def labelled(self) -> np.ndarray:
        """bool [M]: True if every row of the item has a group."""
        out = np.ones(len(self), bool)
        out[self.of_row[self.labels["group"] == 0]] = False
        return out

    def as_queries(self) -> "Items":
        """Return the same items with `vectors` replaced by `query_vectors`."""
        return replace(self, vectors=self.query_vectors)

    def regrouped(self, group: np.ndarray) -> "Items":
        """Return the same items with other group labels, int64 [N]."""
        return replace(self, labels={**self.labels, "group": group})


def take_rows(e: Embeddings, rows: np.ndarray) -> Embeddings:
    """Return the rows of `e` at positions `rows`, in that order."""
    labels = {k: np.asarray(v)[rows] for k, v in e.labels.items()}
    queries = None if e.queries is None else e.queries[rows]
    return Embeddings([e.ids[i] for i in rows], [e.groups[i] for i in rows], labels, e.vectors[rows], e.fingerprint, queries)


def concatenated(first: Embeddings, second: Embeddings) -> Embeddings:
    """Return the rows of `first` followed by those of `second`, which are of the same model; without query embeddings."""
    labels = {k: np.concatenate([v, second.labels[k]]) for k, v in first.labels.items() if k in second.labels}
    vectors = np.concatenate([first.vectors, second.vectors])
    return Embeddings([*first.ids, *second.ids], [*first.groups, *second.groups], labels, vectors, first.fingerprint)


def names_to_labels(names: Sequence[str | None]) -> np.ndarray:
    """Hash names to int64 labels [N] (first 8 bytes of SHA-256); None becomes 0.

    Equal names have equal labels in every call, so labels of different data sets can be compared.
    """
    known = {n: int.from_bytes(hashlib.sha256(n.encode()).digest()[:8], "little", signed=True) or 1 for n in set(names) if n}
    return np.array([known.get(n, 0) if n else 0 for n in names], np.int64)


def unique_items(name: str, e: Embeddings, repeated_ids: bool = False) -> Items:
    """Merge the rows of `e` that have identical content into the items of modality `name`.

    repeated_ids: True if several sources of a dataset mix may hold the same row; rows with the same id and content are then
        one item. False requires unique ids.

    Raises DataError if ids, vectors, groups and labels differ in length, if rows with one id have different contents, or if a
    vector holds NaN or infinity.
    """
    n = len(e.ids)
    if len(e.vectors) != n or len(e.groups) != n or any(len(v) != n for v in e.labels.values()):
        raise DataError(
            f"{name}: {n} ids, {len(e.vectors)} vectors and {len(e.groups)} groups; give one vector, one group and one label of "
            "each kind per row"
        )
    content = np.asarray(e.labels.get(name, np.zeros(n, np.int64)), np.int64)
    up = np.array(sorted(range(n), key=e.ids.__getitem__), np.int64)
    _check_ids(name, e.ids, content, up, repeated_ids)
    _, same = np.unique(content, return_inverse=True)
    same = np.where(content == 0, same.max(initial=0) + 1 + np.arange(n), same)  # a row without a label is its own item
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
            raise DataError(f"{name}: the row id {ids[a]!r} occurs twice, with different content; ids must be unique")


def check_unit_vectors(name: str, e: Embeddings) -> None:
    """Check that the vectors are a contiguous float32 array [N, D] of finite, non-zero, L2-normalised rows.

    Raises DataError with the ids of the first wrong rows otherwise.
    """
    v = e.vectors
    if v.ndim != 2 or v.dtype != np.float32 or not v.flags.c_contiguous:
        raise DataError(f"{name}: vectors must be a contiguous float32 array [rows, dimensions]; got {v.dtype} {v.shape}")
    for start in range(0, len(v), CHECK_BLOCK):
        block = v[start : start + CHECK_BLOCK]
        squares = np.einsum("nd,nd->n", block, block)
        for wrong, problem, fix in (
            (~np.isfinite(squares), "contain NaN or infinity", "the model or its input is broken"),
            (squares == 0, "are zero vectors, which have no direction", "remove these rows or repair their content"),
            (np.abs(squares - 1) > 1e-3, "are not of unit length", "divide each by its L2 norm"),
        ):
            at = np.flatnonzero(wrong)
            if len(at):
                some = ", ".join(repr(e.ids[start + i]) for i in at[:3])
                rows = f"rows {start}..{start + len(block) - 1}"
                raise DataError(f"{name}: {len(at)} of {rows} {problem} (first: {some}); {fix}")
