"""Compute the positive score of every query: the score of its positive, with which margins compare the negatives.

The candidates of a query's own rows are its positives, as in NV-Retriever (arXiv 2407.15831). If several rows share the query
item, each has its own positive, and `how` combines their scores:
    "mean" (default): the typical positive, so one bad image hardly changes the margin
    "min": the strictest, as in sentence-transformers
    "max": the most lenient

If there is no positive from an own row, the first of these is used instead:
    1. other members of the query's group (always the case within one modality, where the own row is the query itself)
    2. the median of the direction
    3. if no positive is known at all: 1 within one modality (an item matches itself), NaN ("no margin") between two modalities
"""

from dataclasses import dataclass

import numpy as np

from mmtune.relevance.positives import Positives
from mmtune.search.exact_scores import pair_keys
from mmtune.search.tie_order import GRID

QUERIES_PER_BLOCK = 4096
ORIGINS = ("own_rows", "group", "median", "none")
"""Where a positive score comes from; `PositiveScores.origin` holds positions in this tuple."""


@dataclass
class PositiveScores:
    """score: float64 [Q], NaN if there is none. origin: int8 [Q], position in ORIGINS."""

    score: np.ndarray
    origin: np.ndarray

    @property
    def unknown(self) -> int:
        """Number of queries without a known positive."""
        return int((self.origin >= ORIGINS.index("median")).sum())

    def counts(self) -> dict[str, int]:
        """Return the number of queries by origin."""
        return {name: int((self.origin == i).sum()) for i, name in enumerate(ORIGINS)}


def positive_scores(positives: Positives, how: str = "mean", own_only: bool = False) -> PositiveScores:
    """Compute the positive score of every query of a direction.

    how: how to combine several positives: "mean", "min" or "max"
    own_only: ignore other members of the group
    """
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
    """Combine the scores of each query's pairs (owner, candidate): float64 [len(q)], NaN for a query without pairs.

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
