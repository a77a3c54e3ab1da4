"""Select which of the remaining candidates are mined: the best ones, random ones, or random ones weighted by score.

A cap limits how often one candidate is mined. Random draws come from a hash of (seed, query id, candidate id), so they do not
depend on blocks, row order or other directions.
"""

from collections.abc import Callable

import numpy as np

from mmtune.data.identity_labels import splitmix64
from mmtune.mining.candidate_block import CandidateBlock, preference_rank
from mmtune.mining.id_hashes import id_hashes
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items

MAX_SOURCES = 64
"""Upper limit of the number of sources. Ranks are multiplied by it, so that candidates sort by rank, then by source."""

Preference = Callable[[CandidateBlock], np.ndarray]
"""Function of a block that returns float64 [B, W]; candidates with the smallest values are mined first."""


def make_preference(options: MiningOptions, queries: Items, candidates: Items) -> Preference:
    """Return the order in which candidates are mined, according to `options.sampling`.

    "top": by rank
    "random": uniform
    "softmax": sampled without replacement with probability softmax(score / temperature), by the Gumbel-top-k trick
        (Kool et al., arXiv 1903.06059)
    """
    if options.sampling == "top":
        return lambda block: block.rank * float(MAX_SOURCES) + block.source
    query_hash, candidate_hash, seed = id_hashes(queries.ids), id_hashes(candidates.ids), np.uint64(options.seed)

    def uniform(block: CandidateBlock) -> np.ndarray:
        with np.errstate(over="ignore"):
            row = splitmix64(query_hash[block.queries] + seed)[:, None]
            bits = splitmix64(row ^ candidate_hash[block.candidates])
        # 53 random bits as a float64 strictly between 0 and 1
        return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    if options.sampling == "random":
        return uniform
    return lambda block: np.log(-np.log(uniform(block))) - block.scores / options.temperature


class Selection:
    """Selects negatives block by block, in the order of the queries' ids. With a cap, this order affects the result."""

    def __init__(self, quota: np.ndarray, candidates: int, hub_cap: float | None):
        """Start a selection.

        quota: int64 [Q], number of negatives per query
        candidates: number of candidates
        hub_cap: a candidate is mined at most hub_cap times as often as the average candidate would be; None: no limit
        """
        self.quota = quota
        fair = quota.sum() / max(candidates, 1)
        self.cap = None if hub_cap is None else int(max(np.ceil(hub_cap * fair), 1))
        self.times_mined = np.zeros(candidates, np.int64)

    def select(self, block: CandidateBlock, reason: np.ndarray, preferred: np.ndarray, hub_reason: int) -> np.ndarray:
        """bool [B, W]: the mined candidates, chosen among those with reason 0.

        Candidates refused because of the cap get `hub_reason` in `reason` [B, W], in place.
        """
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
