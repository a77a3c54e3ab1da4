"""The candidates of a block of queries, passed from the sources to the guards and to the selection."""

from dataclasses import dataclass

import numpy as np


@dataclass
class CandidateBlock:
    """B queries with W candidates each, ordered by source, then by rank.

    queries: int64 [B], query items
    candidates: int64 [B, W], candidate items; -1 where there is none
    scores: float32 [B, W], cosines
    rank: int32 [B, W], rank within the candidate's source, from 1
    source: int8 [B, W], number of the source that proposed the candidate
    positive_score: float64 [B], the query's positive score, with which margins compare; NaN if no positive is known
    """

    queries: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    rank: np.ndarray
    source: np.ndarray
    positive_score: np.ndarray

    @property
    def filled(self) -> np.ndarray:
        """bool [B, W]: True where there is a candidate."""
        return self.candidates >= 0


def preference_rank(preferred: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the columns of preferred [B, W] ascending: (order, rank) int64 [B, W]; columns that are not `free` come last.

    order: the columns in sorted order
    rank: the position (from 0) of each column in that order
    """
    order = np.argsort(np.where(free, preferred, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), 1)
    return order, rank
