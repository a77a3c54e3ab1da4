"""The score a negative is compared with: what the query gives to what it is known to match.

A query's own rows say what matches it (NV-Retriever, arXiv 2407.15831, with one own row). When several rows share the query,
each has its own positive, and `how` unites them: the mean (default: the typical positive; a single bad picture neither opens
nor shuts the window), "min" (strict, as sentence-transformers does), "max". Without an own positive, mates of the same group
stand in (so also within one modality, where the own row is the query itself); without mates the direction's median stands in,
and when nothing is known at all, 1 within a modality (an item matches itself) and NaN, "no margin", between two.
"""

from dataclasses import dataclass

import numpy as np

from mmtune.relevance.positives import Positives
from mmtune.search.exact_scores import pair_keys
from mmtune.search.tie_order import GRID

AT_ONCE = 4096


@dataclass
class PositiveScores:
    """score float64 [M] a query (NaN: none); kind int8 [M]: 0 own rows, 1 mates, 2 the direction's median, 3 none."""

    score: np.ndarray
    kind: np.ndarray
    spread: np.ndarray


def positive_scores(positives: Positives, how: str = "mean", own_only: bool = False) -> PositiveScores:
    """Positive scores of every query of a direction. own_only: mates do not count."""
    queries = positives.queries
    score, kind = np.full(len(queries), np.nan), np.full(len(queries), 3, np.int8)
    own = positives.own()
    for start in range(0, len(queries), AT_ONCE):
        q = np.arange(start, min(len(queries), start + AT_ONCE))
        owner, c = own.take(q)
        value = _united(positives, q, owner, c, how)
        score[q], kind[q] = value, np.where(np.isnan(value), 3, 0)
        lacks = np.flatnonzero(np.isnan(value))
        if len(lacks) and not own_only:
            owner, c = positives.group_positives(q[lacks])
            value = _united(positives, q[lacks], owner, c, how)
            score[q[lacks]], kind[q[lacks]] = value, np.where(np.isnan(value), 3, 1)
    known = score[kind < 3]
    spread = np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95]) if len(known) else np.full(5, np.nan)
    if len(known):
        score[kind == 3] = np.round(spread[2] * GRID) / GRID
        kind[kind == 3] = 2
    elif positives.within:
        score[:] = 1.0
    return PositiveScores(score, kind, spread)


def _united(positives: Positives, q: np.ndarray, owner: np.ndarray, c: np.ndarray, how: str) -> np.ndarray:
    """float64 [len(q)], NaN without pairs. Keys are integers, so the mean does not depend on the order of the rows."""
    keys = pair_keys(positives.queries.vectors, positives.candidates.vectors, q[owner], c).astype(np.float64)
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
