"""Which of the candidates that are left serve: the top, at random in the window, or by hardness; and no item too often.

Draws come from a hash of (seed, query id, candidate id), so they do not depend on blocks, row order or other directions.
"""

import numpy as np

from mmtune.mining.candidates import Block
from mmtune.mining.guards import ORDER
from mmtune.mining.hash_draws import splitmix64

HUB = ORDER.index("hub") + 1


def preference(block: Block, how: str, temperature: float, seed: int, hash_q: np.ndarray, hash_c: np.ndarray) -> np.ndarray:
    """float64 [B, W], smaller is preferred. softmax: without replacement, by Gumbel keys (Kool et al., arXiv 1903.06059)."""
    if how == "top":
        return block.rank * 8.0 + block.source
    with np.errstate(over="ignore"):
        bits = splitmix64(splitmix64(hash_q[block.q] + np.uint64(seed))[:, None] ^ hash_c[block.items])
    u = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    if how == "random":
        return u
    return np.log(-np.log(u)) - block.scores / temperature


class Sampler:
    """Picks negatives block by block; the cap on hubs is what makes the order of the queries (by id) matter."""

    def __init__(self, wanted: np.ndarray, candidates: int, hub_cap: float | None):
        """wanted [M]: negatives of each query."""
        self.wanted = wanted
        fair = wanted.sum() / max(candidates, 1)
        self.cap = None if hub_cap is None else int(max(np.ceil(hub_cap * fair), 1))
        self.served = np.zeros(candidates, np.int64)

    def pick(self, block: Block, reason: np.ndarray, preferred: np.ndarray) -> np.ndarray:
        """bool [B, W]: what is mined. `reason` [B, W] gets the hub guard's number where the cap stood in the way."""
        free = block.there & (reason == 0)
        order = np.argsort(np.where(free, preferred, np.inf), axis=1, kind="stable")
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), 1)
        chosen = free & (place < self.wanted[block.q][:, None])
        count = np.bincount(block.items[chosen], minlength=len(self.served))
        if self.cap is None or (self.served + count).max(initial=0) <= self.cap:
            self.served += count
            return chosen
        return self._one_by_one(block, reason, free, order)

    def _one_by_one(self, block: Block, reason: np.ndarray, free: np.ndarray, order: np.ndarray) -> np.ndarray:
        chosen = np.zeros(free.shape, bool)
        cap = self.cap or 0
        for i, q in enumerate(block.q.tolist()):
            left = int(self.wanted[q])
            for w in order[i, : int(free[i].sum())].tolist():
                if not left:
                    break
                item = block.items[i, w]
                if self.served[item] >= cap:
                    reason[i, w] = HUB
                    continue
                self.served[item] += 1
                chosen[i, w] = True
                left -= 1
        return chosen
