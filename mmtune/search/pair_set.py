"""Sets of (query, candidate) pairs for one block of queries, such as known positives that a search must leave out."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class PairSet:
    """A set of pairs between a block of B queries and the candidates.

    query, candidate: int64 [P], pairs listed one by one: position of the query in the block, candidate number
    rectangles: list of (queries, candidates); every pair of one of these queries with one of these candidates is in the set.
        So a group of a million rows does not have to be listed pair by pair.
    """

    query: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    candidate: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    rectangles: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def contains(self, candidates_BW: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
        """bool [B, W]: whether (query b, candidates[b, w]) is in the set; False for entries below 0.

        queries: int64 [B], the position in the block of the query of each row; default: row b is query b
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
