"""Which candidates answer a query: the same row, the same group, or a graded judgment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mmtune.contracts import direction
from mmtune.relevance.items import Items, Ragged

Qrels = Mapping[str, Mapping[str, int]]
"""Graded judgments: query row id -> candidate row id -> grade; a grade of 0 or less means "not relevant"."""


class Judgments(dict[str, dict[str, int]]):
    """Qrels of a file. directed: direction -> judgments that hold there only, e.g. a verdict on the words for a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.directed: dict[str, dict[str, dict[str, int]]] = {}

    def of(self, query: str, name: str) -> dict[str, int]:
        """candidate -> grade of one query in one direction; what is said of that direction goes before the rest."""
        return {**self.get(query, {}), **self.directed.get(name, {}).get(query, {})}


MAX_PAIRS = 4_000_000  # relevant pairs held at once


@dataclass
class Relevant:
    """Queries [start, stop) and their relevant candidates: `items[i]` ascending, with `grades` beside `items.values`."""

    start: int
    stop: int
    items: Ragged
    grades: np.ndarray


def expand(lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges [lo, hi) written out: (which range, position), both of length sum(hi - lo)."""
    counts = hi - lo
    which = np.repeat(np.arange(len(lo)), counts)
    offset = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts
    return which, np.arange(len(which)) - np.repeat(offset, counts) + np.repeat(lo, counts)


class _Index:
    """label -> candidates that carry it."""

    def __init__(self, labels: Ragged):
        owner = np.repeat(np.arange(len(labels)), labels.counts)
        order = np.argsort(labels.values, kind="stable")
        self.labels, self.owner = labels.values[order], owner[order]

    def spans(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.searchsorted(self.labels, labels, "left"), np.searchsorted(self.labels, labels, "right")


def relevant(queries: Items, candidates: Items, chunk: int, qrels: Qrels | None = None) -> Iterator[Relevant]:
    """Relevance of every query, at most `chunk` queries at a time and few enough that MAX_PAIRS pairs are held.

    Within one modality (`queries is candidates`) an item never answers itself, and the row says nothing: only groups do.
    With `qrels` the judgments alone decide; an item's grade is the highest over its united rows.
    """
    within = queries is candidates
    if qrels is not None:
        yield from _judged(queries, candidates, chunk, qrels, within)
        return
    sources = [(queries.group_labels, _Index(candidates.group_labels))]
    if not within:
        sources.append((queries.row_labels, _Index(candidates.row_labels)))
    upper = np.zeros(len(queries), np.int64)
    for labels, index in sources:
        lo, hi = index.spans(labels.values)
        upper += np.bincount(np.repeat(np.arange(len(labels)), labels.counts), hi - lo, len(queries)).astype(np.int64)
    start = 0
    while start < len(queries):
        room = int(np.searchsorted(np.cumsum(upper[start : start + chunk]), MAX_PAIRS, "right"))
        stop = min(len(queries), start + max(1, min(chunk, room)))
        q, c = [], []
        for labels, index in sources:
            owner = np.repeat(np.arange(stop - start), labels.counts[start:stop])
            lo, hi = index.spans(labels.values[labels.start[start] : labels.start[stop]])
            which, at = expand(lo, hi)
            q.append(owner[which])
            c.append(index.owner[at])
        q_P, c_P = np.concatenate(q), np.concatenate(c)
        if within:
            other = q_P + start != c_P
            q_P, c_P = q_P[other], c_P[other]
        items = Ragged.of(q_P, c_P, stop - start)
        yield Relevant(start, stop, items, np.ones(len(items.values)))
        start = stop


def _judged(queries: Items, candidates: Items, chunk: int, qrels: Qrels, within: bool) -> Iterator[Relevant]:
    where = {candidates.row_ids[r]: i for i in range(len(candidates)) for r in candidates.rows[i]}
    name = direction(queries.name, candidates.name)

    def said(query: str) -> Mapping[str, int]:
        return qrels.of(query, name) if isinstance(qrels, Judgments) else qrels.get(query, {})

    for start in range(0, len(queries), chunk):
        stop = min(len(queries), start + chunk)
        found: list[dict[int, int]] = [{} for _ in range(stop - start)]
        for i in range(start, stop):
            for r in queries.rows[i]:
                for item_id, grade in said(queries.row_ids[r]).items():
                    at = where.get(item_id)
                    if at is not None and grade > 0 and not (within and at == i):
                        found[i - start][at] = max(grade, found[i - start].get(at, 0))
        q_P = np.array([q for q, f in enumerate(found) for _ in f], np.int64)
        c_P = np.array([c for f in found for c in f], np.int64)
        items = Ragged.of(q_P, c_P, stop - start)
        yield Relevant(start, stop, items, np.array([f[c] for f in found for c in sorted(f)], np.float64))
