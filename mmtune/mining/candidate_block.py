"""Candidates of a block of queries, on their way through guards and selection."""

from dataclasses import dataclass

import numpy as np


@dataclass
class CandidateBlock:
    """B queries with W candidates each, in the order: source, rank.

    queries int64 [B] query items; candidates int64 [B, W] candidate items, -1 where there is none; scores float32 [B, W]
    cosines; rank int32 [B, W] from 1 within its source; source int8 [B, W] number of the source; positive_score float64 [B],
    the score that margins compare with, NaN where no positive is known.
    """

    queries: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    rank: np.ndarray
    source: np.ndarray
    positive_score: np.ndarray

    @property
    def filled(self) -> np.ndarray:
        """bool [B, W]: places that hold a candidate."""
        return self.candidates >= 0


def preference_rank(preferred: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, rank) int64 [B, W] of `preferred` [B, W], smaller first: the columns in that order, and the place (from 0) of
    each column in it. Candidates that are not `free` come last."""
    order = np.argsort(np.where(free, preferred, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), 1)
    return order, rank
