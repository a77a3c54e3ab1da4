"""Compute which candidates are positives of which queries, by row, group, identical content, or human judgment.

Two items are positives of each other if they share a non-zero label of one kind: the row id, the group, or the content of a
modality. Rows of identical content are one item, which carries the labels of all its rows. Losses use the same rule,
implemented in torch by `mmtune.losses.positives_mask`. tests/relevance/test_oracle.py compares both implementations with plain
loops.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.contracts import direction
from mmtune.relevance.items import Items
from mmtune.relevance.judgments import Qrels, grades_of
from mmtune.relevance.ragged import Ragged
from mmtune.search.pair_set import PairSet

BIG = 4096
"""If more candidates than this share a label, their pairs are stored as a rectangle (see `PairSet`), not pair by pair."""
MAX_GROUP_POSITIVES = 32
"""Maximum number of positives per query that `group_positives` returns."""
MAX_PAIRS = 4_000_000
"""Maximum number of relevant pairs that `Positives.blocks` holds in memory at a time."""


@dataclass
class RelevantBlock:
    """The queries start..stop-1 and their relevant candidates.

    items: `items[i]` are the candidates of query start + i, ascending
    grades: the grade of each entry of `items.values`
    """

    start: int
    stop: int
    items: Ragged
    grades: np.ndarray


class Positives:
    """The positives between the items of two modalities, or within one modality if `candidates is queries`.

    kinds: the kinds of label that make two items positives; default: all ("id", "group" and every modality's content label)
    judged: int64 [J, 2], additional positive pairs (query item, candidate item)
    first_row_only: use only the labels of each query item's first row, ignoring the other rows with the same content
    """

    def __init__(
        self,
        queries: Items,
        candidates: Items,
        kinds: Sequence[str] | None = None,
        *,
        judged: np.ndarray | None = None,
        first_row_only: bool = False,
    ):
        self.queries, self.candidates, self.within = queries, candidates, queries is candidates
        every = dict.fromkeys(["group", *sorted(({*queries.labels} | {*candidates.labels}) - {"id", "group"}), "id"])
        keys = _keys(queries, candidates, [k for k in every if kinds is None or k in kinds])
        self._counts_as_query = np.ones(len(queries.of_row), bool)
        if first_row_only:
            self._counts_as_query[:] = False
            self._counts_as_query[queries.head] = True
        counts = self._counts_as_query[keys.query_row]
        self.keys = Ragged.of(queries.of_row[keys.query_row[counts]], keys.query_key[counts], len(queries))
        self.members = Ragged.of(keys.candidate_key, candidates.of_row[keys.candidate_row], keys.count)
        self._big = np.flatnonzero(self.members.counts > BIG)
        self.judged_pairs = np.zeros((0, 2), np.int64) if judged is None else judged
        self.judged = Ragged.of(self.judged_pairs[:, 0], self.judged_pairs[:, 1], len(queries))

    def of(self, q: np.ndarray) -> PairSet:
        """Return the positives of queries q [B], sorted by candidate. Within one modality they include the query itself."""
        query, key = self.keys.take(q)
        rectangles = []
        if len(self._big):
            is_big = np.isin(key, self._big)
            for k in np.unique(key[is_big]):
                rectangles.append((query[is_big & (key == k)], self.members[k]))
            query, key = query[~is_big], key[~is_big]
        which, candidate = self.members.take(key)
        judged_query, judged_candidate = self.judged.take(q)
        query, candidate = np.concatenate([query[which], judged_query]), np.concatenate([candidate, judged_candidate])
        if self.within:
            query, candidate = np.concatenate([query, np.arange(len(q))]), np.concatenate([candidate, q])
        order = np.argsort(candidate, kind="stable")
        return PairSet(query[order], candidate[order], rectangles)

    def contains(self, q: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """bool [B, W]: whether candidates [B, W] are positives of queries q [B]; False for entries below 0."""
        return self.of(q).contains(candidates)

    def blocks(self, max_queries: int) -> Iterator[RelevantBlock]:
        """Yield the positives of all queries, without the query itself, in blocks of at most `max_queries` queries.

        A block has fewer queries if it would hold more than MAX_PAIRS pairs.
        """
        size = self.members.counts
        query, key = self.keys.take(np.arange(len(self.queries)))
        upper = np.bincount(query, size[key], len(self.queries)).astype(np.int64)
        start = 0
        while start < len(self.queries):
            fitting = int(np.searchsorted(np.cumsum(upper[start : start + max_queries]), MAX_PAIRS, "right"))
            stop = min(len(self.queries), start + max(1, min(max_queries, fitting)))
            query, key = self.keys.take(np.arange(start, stop))
            which, candidate = self.members.take(key)
            query = query[which]
            if self.within:
                other = query + start != candidate
                query, candidate = query[other], candidate[other]
            items = Ragged.of(query, candidate, stop - start)
            yield RelevantBlock(start, stop, items, np.ones(len(items.values)))
            start = stop

    def own(self) -> Ragged:
        """For each query, return the candidates that come from the query's own rows; empty lists within one modality."""
        if self.within:
            return Ragged(np.zeros(len(self.queries) + 1, np.int64), np.zeros(0, np.int64))
        query_id, candidate_id = self.queries.labels["id"], self.candidates.labels["id"]
        order = np.argsort(candidate_id, kind="stable")
        at = np.minimum(np.searchsorted(candidate_id[order], query_id), max(len(candidate_id) - 1, 0))
        has = candidate_id[order][at] == query_id if len(candidate_id) else np.zeros(len(query_id), bool)
        has &= self._counts_as_query & (query_id != 0)
        return Ragged.of(self.queries.of_row[has], self.candidates.of_row[order[at[has]]], len(self.queries))

    def group_positives(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positives of queries q [B] other than the query's own item: (position in q, candidate).

        Each query has at most MAX_GROUP_POSITIVES of them, spread evenly over all of its positives.
        """
        query, key = self.keys.take(q)
        which, candidate = self.members.limited(MAX_GROUP_POSITIVES + 1).take(key)
        judged_query, judged_candidate = self.judged.take(q)
        query, candidate = np.concatenate([query[which], judged_query]), np.concatenate([candidate, judged_candidate])
        if self.within:
            other = q[query] != candidate
            query, candidate = query[other], candidate[other]
        lists = Ragged.of(query, candidate, len(q)).limited(MAX_GROUP_POSITIVES)
        return np.repeat(np.arange(len(q)), lists.counts), lists.values


def relevant_blocks(queries: Items, candidates: Items, max_queries: int, qrels: Qrels | None = None) -> Iterator[RelevantBlock]:
    """Yield the relevant candidates of every query, as evaluation uses them, at most `max_queries` queries at a time.

    A candidate is relevant if it shares the query's row or group. Within one modality (`queries is candidates`) row ids are
    ignored and an item is never relevant to itself, so only groups count. With `qrels` only the judgments count; an item's
    grade is then the highest grade of its rows.
    """
    if qrels is None:
        kinds = ("group",) if queries is candidates else ("group", "id")
        yield from Positives(queries, candidates, kinds).blocks(max_queries)
    else:
        yield from _judged_blocks(queries, candidates, max_queries, qrels)


def _judged_blocks(queries: Items, candidates: Items, max_queries: int, qrels: Qrels) -> Iterator[RelevantBlock]:
    item_of = dict(zip(candidates.row_ids, candidates.of_row.tolist(), strict=True))
    name, within = direction(queries.name, candidates.name), queries is candidates
    for start in range(0, len(queries), max_queries):
        stop = min(len(queries), start + max_queries)
        graded: list[dict[int, int]] = [{} for _ in range(stop - start)]
        for i in range(start, stop):
            for row in queries.rows[i]:
                for row_id, grade in grades_of(qrels, queries.row_ids[row], name).items():
                    item = item_of.get(row_id)
                    if item is not None and grade > 0 and not (within and item == i):
                        graded[i - start][item] = max(grade, graded[i - start].get(item, 0))
        query = np.array([q for q, grade_of in enumerate(graded) for _ in grade_of], np.int64)
        candidate = np.array([c for grade_of in graded for c in grade_of], np.int64)
        grades = np.array([grade_of[c] for grade_of in graded for c in sorted(grade_of)], np.float64)
        yield RelevantBlock(start, stop, Ragged.of(query, candidate, stop - start), grades)


@dataclass
class _Keys:
    """The keys of all rows: one entry per (row, key). Rows that share a key are positives. Keys are numbers below `count`."""

    query_row: np.ndarray
    query_key: np.ndarray
    candidate_row: np.ndarray
    candidate_key: np.ndarray
    count: int


def _keys(queries: Items, candidates: Items, kinds: Sequence[str]) -> _Keys:
    """Turn the labels of `kinds` into keys.

    A label is left out if all the pairs of rows that it links are linked by another key already. Otherwise a group of a
    thousand rows with ids and content labels would cost three lists of pairs.
    """
    sides = (queries,) if queries is candidates else (queries, candidates)
    split = len(queries.of_row)
    sizes = [len(s.of_row) for s in sides]

    def label(kind: str) -> np.ndarray:
        parts = [s.labels.get(kind, np.zeros(n, np.int64)) for s, n in zip(sides, sizes, strict=True)]
        return np.concatenate(parts)

    ids = label("id")
    group = label("group") if "group" in kinds else np.zeros(len(ids), np.int64)
    row = np.arange(len(ids))
    has_key = np.zeros(len(ids), bool)
    rows, keys, count = [row[:0]], [row[:0]], 0
    for kind in kinds:
        value = group if kind == "group" else label(kind)
        use = value != 0
        if kind == "id":
            use &= ~has_key | _varies(value, group)
        elif kind != "group":
            use &= _links_more_than_groups(value, ids, group)
        values, key = np.unique(value[use], return_inverse=True)
        rows.append(row[use])
        keys.append(key + count)
        count += len(values)
        has_key |= use
    every_row, every_key = np.concatenate(rows), np.concatenate(keys)
    of_query = every_row < split
    query_side = every_row[of_query], every_key[of_query]
    candidate_side = query_side if queries is candidates else (every_row[~of_query] - split, every_key[~of_query])
    return _Keys(*query_side, *candidate_side, count)


def _varies(value: np.ndarray, x: np.ndarray) -> np.ndarray:
    """bool [N]: whether the rows with the same `value` differ in `x`."""
    values, code = np.unique(value, return_inverse=True)
    return _varies_by_code(code, len(values), x)[code]


def _varies_by_code(code: np.ndarray, codes: int, x: np.ndarray) -> np.ndarray:
    low, high = np.full(codes, np.iinfo(np.int64).max), np.full(codes, np.iinfo(np.int64).min)
    np.minimum.at(low, code, x)
    np.maximum.at(high, code, x)
    return low != high


def _links_more_than_groups(value: np.ndarray, ids: np.ndarray, group: np.ndarray) -> np.ndarray:
    """bool [N]: whether rows with different ids share the content label `value` and are not all in one group."""
    values, code = np.unique(value, return_inverse=True)
    ungrouped = np.bincount(code, group == 0, len(values)) > 0
    return (_varies_by_code(code, len(values), ids) & (_varies_by_code(code, len(values), group) | ungrouped))[code]
