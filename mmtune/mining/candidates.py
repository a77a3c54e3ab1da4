"""Search candidates block by block: take the proposals of all sources, score them, drop known positives and duplicates."""

from collections.abc import Iterator

import numpy as np

from mmtune.mining.candidate_block import CandidateBlock
from mmtune.mining.context import MiningContext
from mmtune.mining.nearest_candidates import NearestCandidates, resolve_device
from mmtune.mining.sources import ScoredCandidates, make_source, source_names
from mmtune.relevance.positives import Positives
from mmtune.search.exact_scores import pair_keys
from mmtune.search.parallel import worker_count
from mmtune.search.tie_order import GRID, to_scores

BLOCK = 1024
"""Number of queries per block if the source `nearest` is not used."""


class CandidateSearch:
    """All sources of one direction.

    names: source names in the order of their numbers, including sources that are not used
    block: maximum number of queries per call of `top`
    threads: number of calls of `top` that may run in parallel
    """

    def __init__(self, context: MiningContext, nearest: NearestCandidates | None = None):
        """nearest: if given, it is the only source used."""
        self.context, self.window = context, context.options.window
        self.names = source_names(context.options.sources)
        used = ["nearest"] if nearest else [n for n in self.names if n in context.options.sources]
        self.sources = {self.names.index(n): nearest or make_source(n, context) for n in used}
        self.nearest = next((s for s in self.sources.values() if isinstance(s, NearestCandidates)), None)
        self.block = self.nearest.search.block if self.nearest else BLOCK
        self.threads = worker_count(resolve_device(context.options.search.device))

    def nearest_only(self, positives: Positives) -> "CandidateSearch":
        """Return a search with the source `nearest` alone, on the same index, with other known positives."""
        context = self.context.with_positives(positives)
        return CandidateSearch(context, NearestCandidates(context, self.nearest.search if self.nearest else None))

    def top(self, queries: np.ndarray, positive_score: np.ndarray) -> CandidateBlock:
        """Search candidates for query items [B]. A candidate proposed by several sources counts for the first."""
        parts = [self._part(number, source.propose(queries), queries) for number, source in self.sources.items()]
        candidates, scores, rank, source = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
        if len(parts) > 1:
            candidates = _without_repeats(candidates)
        return CandidateBlock(queries, candidates, scores, rank, source, positive_score)

    def blocks(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """Split query items into blocks of the size that `top` accepts."""
        for start in range(0, len(queries), self.block):
            yield queries[start : start + self.block]

    def _part(self, number: int, proposed: np.ndarray | ScoredCandidates, queries: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return (candidates, scores, rank, source) [B, W] of one source's proposals."""
        if not isinstance(proposed, ScoredCandidates):
            proposed = self._scored(queries, np.asarray(proposed, np.int64))
        shape = proposed.candidates.shape
        rank = np.broadcast_to(np.arange(1, shape[1] + 1, dtype=np.int32), shape)
        return proposed.candidates, to_scores(proposed.keys), rank, np.full(shape, number, np.int8)

    def _scored(self, queries: np.ndarray, candidates: np.ndarray) -> ScoredCandidates:
        """Return the first `window` proposals that are not known positives, with their keys."""
        candidates = np.where(self.context.positives.contains(queries, candidates), -1, candidates)
        empty_last = np.argsort(candidates < 0, axis=1, kind="stable")
        candidates = np.take_along_axis(candidates, empty_last, 1)[:, : self.window]
        row, column = np.nonzero(candidates >= 0)
        keys = np.full(candidates.shape, -GRID, np.int32)
        vectors = self.context.queries.vectors, self.context.candidates.vectors
        keys[row, column] = pair_keys(*vectors, queries[row], candidates[row, column])
        return ScoredCandidates(candidates, keys)


def _without_repeats(candidates: np.ndarray) -> np.ndarray:
    """Replace each candidate that occurs further left in its row by -1, in [B, W]."""
    order = np.argsort(candidates, axis=1, kind="stable")
    in_order = np.take_along_axis(candidates, order, 1)
    repeat = np.zeros(candidates.shape, bool)
    again = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    np.put_along_axis(repeat, order[:, 1:], again, 1)
    return np.where(repeat, -1, candidates)
