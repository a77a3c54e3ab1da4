"""Which of the remaining candidates are mined: the top, random ones of the window, or by hardness; and none too often.

Draws come from a hash of (seed, query id, candidate id), so they do not depend on blocks, row order or other directions.
"""

from collections.abc import Callable

import numpy as np

from mmtune.data.identity_labels import splitmix64
from mmtune.mining.candidate_block import CandidateBlock, preference_rank
from mmtune.mining.id_hashes import id_hashes
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items

MAX_SOURCES = 64
"""More than there are sources: rank decides before source."""

Preference = Callable[[CandidateBlock], np.ndarray]
"""Block -> float64 [B, W]; the smallest values are mined first."""


def make_preference(options: MiningOptions, queries: Items, candidates: Items) -> Preference:
    """The order in which candidates are mined, by `options.sampling`.

    softmax: without replacement and by score, with Gumbel keys (Kool et al., arXiv 1903.06059).
    """
    if options.sampling == "top":
        return lambda block: block.rank * float(MAX_SOURCES) + block.source
    query_hash, candidate_hash, seed = id_hashes(queries.ids), id_hashes(candidates.ids), np.uint64(options.seed)

    def uniform(block: CandidateBlock) -> np.ndarray:
        with np.errstate(over="ignore"):
            row = splitmix64(query_hash[block.queries] + seed)[:, None]
            bits = splitmix64(row ^ candidate_hash[block.candidates])
        return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    if options.sampling == "random":
        return uniform
    return lambda block: np.log(-np.log(uniform(block))) - block.scores / options.temperature


class Selection:
    """Selects negatives block by block. The cap on how often a candidate is mined makes the order of the queries (by id) matter."""

    def __init__(self, quota: np.ndarray, candidates: int, hub_cap: float | None):
        """quota int64 [Q]: negatives of each query; candidates: their number; hub_cap: a candidate is mined at most this many
        times its fair share, None: no cap."""
        self.quota = quota
        fair = quota.sum() / max(candidates, 1)
        self.cap = None if hub_cap is None else int(max(np.ceil(hub_cap * fair), 1))
        self.times_mined = np.zeros(candidates, np.int64)

    def select(self, block: CandidateBlock, reason: np.ndarray, preferred: np.ndarray, hub_reason: int) -> np.ndarray:
        """bool [B, W]: the mined candidates among those with reason 0. `reason` [B, W] gets `hub_reason` where the cap dropped
        a candidate."""
        free = block.filled & (reason == 0)
        order, rank = preference_rank(preferred, free)
        is_mined = free & (rank < self.quota[block.queries][:, None])
        count = np.bincount(block.candidates[is_mined], minlength=len(self.times_mined))
        if self.cap is None or (self.times_mined + count).max(initial=0) <= self.cap:
            self.times_mined += count
            return is_mined
        return self._select_under_cap(block, reason, free, order, hub_reason)

    def _select_under_cap(
        self, block: CandidateBlock, reason: np.ndarray, free: np.ndarray, order: np.ndarray, hub_reason: int
    ) -> np.ndarray:
        is_mined = np.zeros(free.shape, bool)
        cap = self.cap or 0
        for i, q in enumerate(block.queries.tolist()):
            left = int(self.quota[q])
            for w in order[i, : int(free[i].sum())].tolist():
                if not left:
                    break
                candidate = block.candidates[i, w]
                if self.times_mined[candidate] >= cap:
                    reason[i, w] = hub_reason
                    continue
                self.times_mined[candidate] += 1
                is_mined[i, w] = True
                left -= 1
        return is_mined
