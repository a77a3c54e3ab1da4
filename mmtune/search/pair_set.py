"""Sets of (query, candidate) pairs of a block of queries, such as known positives that a search must leave out."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class PairSet:
    """Pairs between a block of B queries and the candidates.

    query, candidate: int64 [P], the listed pairs, by position in the block and by candidate number. rectangles: (queries,
    candidates) whose pairs all belong to the set; a group of a million rows is not listed pair by pair.
    """

    query: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    candidate: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    rectangles: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def contains(self, candidates_BW: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
        """bool [B, W]: whether (query b, candidates[b, w]) is in the set. Entries below 0 are in no set.

        queries: int64 [B], positions in the block that the rows stand for; default: all of the block.
        """
        rows = np.arange(len(candidates_BW)) if queries is None else queries
        width = np.int64(max(self.candidate.max(initial=-1), candidates_BW.max(initial=-1)) + 1)
        listed = np.sort(self.query * width + self.candidate)
        pairs = np.where(candidates_BW >= 0, rows[:, None] * width + candidates_BW, -1)
        out = np.zeros(candidates_BW.shape, bool)
        if len(listed):
            at = np.searchsorted(listed, pairs)
            out = listed[np.minimum(at, len(listed) - 1)] == pairs
        for members, candidates in self.rectangles:
            inside = np.isin(rows, members)
            out[inside] |= np.isin(candidates_BW[inside], candidates)
        return out & (candidates_BW >= 0)
