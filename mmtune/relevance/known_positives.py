"""Known positives: which candidate is the same thing as which query, by row, group, identical content or human judgment.

Every row carries keys; two items that share a key are the same thing. A row's keys are its group, each content label that it
shares with other rows (unless all of those lie in one group, which says it already), and its id when there is nothing else.
"""

from dataclasses import dataclass

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.relevance.mining_items import Items, Ragged

BIG = 4096  # keys with more candidates than this are masked by rectangle, not pair by pair
MATES = 32  # positives of the same group that a positive score looks at, at most


@dataclass
class Known:
    """Positives of a block of queries: pairs (query's place in the block, candidate), and rectangles rows x candidates."""

    pair_q: np.ndarray
    pair_c: np.ndarray
    big: list[tuple[np.ndarray, np.ndarray]]


class Relevance:
    """Positives between the items of two modalities (or one, `b is a`)."""

    def __init__(
        self,
        a: Items,
        b: Items,
        rows_a: Embeddings,
        rows_b: Embeddings,
        groups: bool = True,
        judged: "np.ndarray | None" = None,
        first_row: bool = False,
    ):
        """judged: int64 [J, 2] further positive pairs (item of a, item of b). first_row: a query that several rows share is
        known by the first of them only (as if nobody had noticed that the others say the same)."""
        self.a, self.b, self.within = a, b, a is b
        (row_a, code_a), (row_b, code_b), codes = _keys(rows_a, rows_b, groups)
        self._asks = np.ones(len(a.of_row), bool)
        if first_row:
            self._asks[:] = False
            self._asks[a.head] = True
        asks = self._asks[row_a]
        self.keys = Ragged.of(a.of_row[row_a[asks]], code_a[asks], len(a))
        self.members = Ragged.of(code_b, b.of_row[row_b], codes)
        self._big = np.flatnonzero(self.members.counts > BIG)
        j = np.zeros((0, 2), np.int64) if judged is None else judged
        self.judged = Ragged.of(j[:, 0], j[:, 1], len(a))
        self._ids = (_id_codes(rows_a), _id_codes(rows_b))

    def known(self, q: np.ndarray) -> Known:
        """Everything known to answer queries q [B], themselves included within a modality; pairs sorted by candidate."""
        owner, key = self.keys.take(q)
        rectangles = []
        if len(self._big):
            is_big = np.isin(key, self._big)
            for k in np.unique(key[is_big]):
                rectangles.append((owner[is_big & (key == k)], self.members[k]))
            owner, key = owner[~is_big], key[~is_big]
        which, c = self.members.take(key)
        jq, jc = self.judged.take(q)
        pair_q, pair_c = np.concatenate([owner[which], jq]), np.concatenate([c, jc])
        if self.within:
            pair_q, pair_c = np.concatenate([pair_q, np.arange(len(q))]), np.concatenate([pair_c, q])
        order = np.argsort(pair_c, kind="stable")
        return Known(pair_q[order], pair_c[order], rectangles)

    def is_positive(self, q: np.ndarray, c: np.ndarray) -> np.ndarray:
        """bool [B, W] for candidates c [B, W] of queries q [B]; places with c < 0 are False."""
        known = self.known(q)
        n = np.int64(len(self.b))
        pairs = np.sort(known.pair_q * n + known.pair_c)
        asked = np.where(c >= 0, np.arange(len(q))[:, None] * n + c, -1)
        at = np.searchsorted(pairs, asked)
        out = np.zeros(c.shape, bool)
        if len(pairs):
            out = pairs[np.minimum(at, len(pairs) - 1)] == asked
        for rows, members in known.big:
            out[rows] |= np.isin(c[rows], members)
        return out & (c >= 0)

    def own(self) -> Ragged:
        """Each query's own positives: what its rows carry in the other modality (none within a modality)."""
        if self.within:
            return Ragged(np.zeros(len(self.a) + 1, np.int64), np.zeros(0, np.int64))
        ids_a, ids_b = self._ids
        order = np.argsort(ids_b, kind="stable")
        at = np.minimum(np.searchsorted(ids_b[order], ids_a), max(len(ids_b) - 1, 0))
        has = ids_b[order][at] == ids_a if len(ids_b) else np.zeros(len(ids_a), bool)
        has &= self._asks
        return Ragged.of(self.a.of_row[has], self.b.of_row[order[at[has]]], len(self.a))

    def mates(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Other positives of queries q [B], at most MATES each and spread over them: (place in q, candidate)."""
        owner, key = self.keys.take(q)
        which, c = self.members.first(MATES + 1).take(key)
        who = owner[which]
        jq, jc = self.judged.take(q)
        who, c = np.concatenate([who, jq]), np.concatenate([c, jc])
        if self.within:
            other = q[who] != c
            who, c = who[other], c[other]
        r = Ragged.of(who, c, len(q)).first(MATES)
        return np.repeat(np.arange(len(q)), r.counts), r.values


def _id_codes(e: Embeddings) -> np.ndarray:
    from mmtune.relevance.mining_items import id_hashes

    label = e.labels.get("id")
    if label is not None and (np.asarray(label) != 0).all():
        return np.asarray(label, np.int64)
    return id_hashes(e.ids).view(np.int64)


def _keys(a: Embeddings, b: Embeddings, groups: bool):  # type: ignore[no-untyped-def]
    """((row, code) of a, (row, code) of b, how many codes)."""
    both = (a,) if a is b else (a, b)
    split = len(a.ids)
    ids = np.concatenate([_id_codes(e) for e in both])
    row = np.arange(len(ids))

    def label(kind: str) -> np.ndarray:
        return np.concatenate([np.asarray(e.labels.get(kind, np.zeros(len(e.ids), np.int64)), np.int64) for e in both])

    group = label("group") if groups else np.zeros(len(ids), np.int64)
    rows, codes, total = [], [], 0
    keyed = np.zeros(len(ids), bool)

    def add(mask: np.ndarray, values: np.ndarray) -> None:
        nonlocal total
        found, code = np.unique(values[mask], return_inverse=True)
        rows.append(row[mask])
        codes.append(code + total)
        total += len(found)
        keyed[mask] = True

    add(group != 0, group)
    if groups:
        for kind in sorted({k for e in both for k in e.labels} - {"id", "group"}):
            value = label(kind)
            add((value != 0) & _worth(value, ids, group), value)
    add(~keyed, ids)
    r, c = np.concatenate(rows), np.concatenate(codes)
    first = r < split
    side_a = (r[first], c[first])
    return side_a, side_a if a is b else (r[~first] - split, c[~first]), total


def _worth(value: np.ndarray, ids: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Where a content label links rows that are not linked already: several rows share it, and not all within one group."""
    _, code = np.unique(value, return_inverse=True)
    n = int(code.max(initial=-1)) + 1

    def varies(x: np.ndarray) -> np.ndarray:
        low, high = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
        np.minimum.at(low, code, x)
        np.maximum.at(high, code, x)
        return low != high

    ungrouped = np.bincount(code, group == 0, n) > 0
    return (varies(ids) & (varies(group) | ungrouped))[code]
