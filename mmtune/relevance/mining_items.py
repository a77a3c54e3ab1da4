"""Rows -> items: rows of one modality with identical content are one item, as query and as candidate.

Items are numbered by DESCENDING id, so that an item's number is its place among ties (see `mmtune.search.exact`), and nothing
that mining does depends on the order of the rows.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError

CHECKED_AT_ONCE = 65536


@dataclass
class Ragged:
    """Lists of int64: values[start[i] : start[i + 1]] belong to i, ascending and without repeats."""

    start: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(owner: np.ndarray, values: np.ndarray, size: int) -> "Ragged":
        """From pairs (owner, value) in any order; repeats are dropped."""
        order = np.lexsort((values, owner))
        owner, values = owner[order], values[order]
        if len(owner):
            new = np.append(True, (owner[1:] != owner[:-1]) | (values[1:] != values[:-1]))
            owner, values = owner[new], values[new]
        return Ragged(np.append(0, np.cumsum(np.bincount(owner, minlength=size))).astype(np.int64), values)

    @property
    def counts(self) -> np.ndarray:
        """How long each list is."""
        return np.diff(self.start)

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.start[i] : self.start[i + 1]]

    def take(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists `which` [n] written out: (position in `which`, value)."""
        counts = self.start[which + 1] - self.start[which]
        owner = np.repeat(np.arange(len(which)), counts)
        ends = np.cumsum(counts)
        at = np.arange(len(owner)) - np.repeat(ends - counts, counts) + np.repeat(self.start[which], counts)
        return owner, self.values[at]

    def first(self, limit: int) -> "Ragged":
        """At most `limit` values of each list, spread evenly over it."""
        counts = self.counts
        if not len(counts) or counts.max() <= limit:
            return self
        taken = np.minimum(counts, limit)
        owner = np.repeat(np.arange(len(taken)), taken)
        j = np.arange(len(owner)) - np.repeat(np.cumsum(taken) - taken, taken)
        at = self.start[owner] + j * counts[owner] // taken[owner]
        return Ragged(np.append(0, np.cumsum(taken)).astype(np.int64), self.values[at])


@dataclass
class Items:
    """M items of one modality. vectors is the Embeddings's own [N, D]; item i's vector is vectors[head[i]].

    rows: item -> row numbers in the Embeddings; of_row [N]: row -> item; labelled [M]: every row of it has a group.
    """

    name: str
    ids: list[str]
    vectors: np.ndarray
    head: np.ndarray
    rows: Ragged
    of_row: np.ndarray
    labelled: np.ndarray
    row_ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.vectors.shape[1]

    def take(self, items: np.ndarray) -> np.ndarray:
        """Vectors float32 [n, D] of items."""
        return np.ascontiguousarray(self.vectors[self.head[items]], np.float32)


def unite(name: str, e: Embeddings) -> Items:
    """The items of modality `name`. DataError for lengths that differ, one id of two contents (the same row in two sources of
    a mix is fine), and vectors mining cannot use."""
    n = len(e.ids)
    if len(e.vectors) != n or any(len(v) != n for v in e.labels.values()):
        raise DataError(f"{name}: {n} ids but {len(e.vectors)} vectors or labels of another length; they must be one a row")
    content = np.asarray(e.labels.get(name, np.zeros(n, np.int64)), np.int64)
    up = np.array(sorted(range(n), key=e.ids.__getitem__), np.int64)
    for a, b in zip(up[:-1].tolist(), up[1:].tolist(), strict=True):
        if e.ids[a] == e.ids[b] and not content[a] == content[b] != 0:
            raise DataError(f"{name}: the row id {e.ids[a]!r} occurs twice, with other content; ids must be unique")
    check_vectors(name, e)
    _, same = np.unique(content, return_inverse=True)
    same = np.where(content == 0, same.max(initial=0) + 1 + np.arange(n), same)
    _, first, of_up = np.unique(same[up], return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(-first, kind="stable")] = np.arange(len(first))  # the smallest id of an item is its id; descending
    of_row = np.empty(n, np.int64)
    of_row[up] = place[of_up]
    head = up[np.sort(first)[::-1]]
    group = np.asarray(e.labels.get("group", np.zeros(n, np.int64)), np.int64)
    labelled = np.ones(len(head), bool)
    labelled[of_row[group == 0]] = False
    rows = Ragged.of(of_row, np.arange(n), len(head))
    return Items(name, [e.ids[i] for i in head], e.vectors, head, rows, of_row, labelled, e.ids)


def check_vectors(name: str, e: Embeddings) -> None:
    """DataError for vectors that are not float32 [N, D], hold NaN, are zero, or not of unit length; names the first rows."""
    v = e.vectors
    if v.ndim != 2 or v.dtype != np.float32 or not v.flags.c_contiguous:
        raise DataError(f"{name}: vectors must be a contiguous float32 array [rows, dimensions]; got {v.dtype} {v.shape}")
    for start in range(0, len(v), CHECKED_AT_ONCE):
        part = v[start : start + CHECKED_AT_ONCE]
        squares = np.einsum("nd,nd->n", part, part)
        for wrong, says, fix in (
            (~np.isfinite(squares), "hold NaN or infinity", "the model or its input is broken"),
            (squares == 0, "are zero vectors, which have no direction", "leave these rows out or repair their content"),
            (np.abs(squares - 1) > 1e-3, "are not of unit length", "divide each by its length"),
        ):
            at = np.flatnonzero(wrong)
            if len(at):
                some = ", ".join(repr(e.ids[start + i]) for i in at[:3])
                raise DataError(f"{name}: {len(at)} of rows {start}..{start + len(part) - 1} {says} (first: {some}); {fix}")


def id_hashes(ids: list[str]) -> np.ndarray:
    """uint64 [N], the same for the same id everywhere: what sampling draws from, so that block and order do not matter."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, np.uint64)


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014) on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
