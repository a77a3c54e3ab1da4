"""The score that margins compare a negative with: the score of the query's positive.

A query's own rows name its positives (NV-Retriever, arXiv 2407.15831, with one own row). When several rows share the query,
each has its own positive, and `how` unites their scores: the mean (default: the typical positive, so that one bad image does
not widen or close the window), "min" (strict, as sentence-transformers does) or "max". Without an own positive, other members
of the group are used (always so within one modality, where the own row is the query itself); without these, the median of the
direction; and when no positive is known at all, 1 within a modality (an item matches itself) and NaN, "no margin", between two.
"""

from dataclasses import dataclass

import numpy as np

from mmtune.relevance.positives import Positives
from mmtune.search.exact_scores import pair_keys
from mmtune.search.tie_order import GRID

QUERIES_PER_BLOCK = 4096
ORIGINS = ("own_rows", "group", "median", "none")
"""Where a positive score comes from, by number."""


@dataclass
class PositiveScores:
    """score float64 [Q], NaN where there is none; origin int8 [Q], see ORIGINS."""

    score: np.ndarray
    origin: np.ndarray

    @property
    def unknown(self) -> int:
        """Queries without any known positive."""
        return int((self.origin >= ORIGINS.index("median")).sum())

    def counts(self) -> dict[str, int]:
        """Queries by origin."""
        return {name: int((self.origin == i).sum()) for i, name in enumerate(ORIGINS)}


def positive_scores(positives: Positives, how: str = "mean", own_only: bool = False) -> PositiveScores:
    """Positive scores of every query of a direction. own_only: other members of the group do not count."""
    queries = positives.queries
    own_rows, group, median, none = range(len(ORIGINS))
    score, origin = np.full(len(queries), np.nan), np.full(len(queries), none, np.int8)
    own = positives.own()
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        q = np.arange(start, min(len(queries), start + QUERIES_PER_BLOCK))
        value = _united(positives, q, *own.take(q), how)
        score[q], origin[q] = value, np.where(np.isnan(value), none, own_rows)
        without = np.flatnonzero(np.isnan(value))
        if len(without) and not own_only:
            value = _united(positives, q[without], *positives.group_positives(q[without]), how)
            score[q[without]], origin[q[without]] = value, np.where(np.isnan(value), none, group)
    known = score[origin < none]
    if len(known):
        score[origin == none] = np.round(np.quantile(known, 0.5) * GRID) / GRID
        origin[origin == none] = median
    elif positives.within:
        score[:] = 1.0
    return PositiveScores(score, origin)


def _united(positives: Positives, q: np.ndarray, owner: np.ndarray, candidate: np.ndarray, how: str) -> np.ndarray:
    """float64 [len(q)], the united score of each query's pairs, NaN without any.

    Keys are integers, so the mean does not depend on the order of the rows.
    """
    keys = pair_keys(positives.queries.vectors, positives.candidates.vectors, q[owner], candidate).astype(np.float64)
    out = np.full(len(q), np.nan)
    count = np.bincount(owner, minlength=len(q))
    some = count > 0
    if how == "mean":
        out[some] = np.bincount(owner, keys, len(q))[some] / count[some]
    else:
        edge = np.full(len(q), np.inf if how == "min" else -np.inf)
        (np.minimum if how == "min" else np.maximum).at(edge, owner, keys)
        out[some] = edge[some]
    return out / GRID
