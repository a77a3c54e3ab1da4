"""Guards: why a candidate might be a positive that nobody labelled. Each is a mask over a block of candidates.

Margins keep a candidate only if score <= positive - margin, where the relative margin is a share of |positive|: so a larger
margin is stricter for negative scores too (NV-Retriever's `score < 0.95 positive`, arXiv 2407.15831, reverses below zero).
"""

from dataclasses import dataclass, field

import numpy as np

from mmtune.mining.candidates import Block
from mmtune.mining.near_duplicates import Near
from mmtune.recipe.mining_block import Guards
from mmtune.relevance.ragged import Ragged

ORDER = ("skip_top", "max_score", "absolute_margin", "relative_margin", "near_duplicate", "verifier", "unverified", "hub")
"""Names in the order in which a drop is attributed; the number of a guard is its place here + 1, 0 means kept."""


@dataclass
class Guard:
    """The guards of one direction, with what they need."""

    options: Guards
    relative: float | None
    labelled_q: np.ndarray
    labelled_c: np.ndarray
    near: Near | None = None
    judged_negative: Ragged | None = field(default=None)

    def masks(self, block: Block) -> dict[str, np.ndarray]:
        """What each guard would drop by itself, bool [B, W] by name."""
        o, score, there = self.options, block.scores.astype(np.float64), block.there
        positive = block.positive[:, None]
        out = {}
        if o.skip_top:
            out["skip_top"] = (block.rank <= o.skip_top) & (block.source == 0)
        if o.max_score is not None:
            out["max_score"] = score > o.max_score
        with np.errstate(invalid="ignore"):  # no positive: no margin
            if o.absolute_margin is not None:
                out["absolute_margin"] = score > positive - o.absolute_margin
            if self.relative is not None:
                out["relative_margin"] = score > positive - self.relative * np.abs(positive)
        if self.near is not None:
            out["near_duplicate"] = self.near.pairs(block.q, block.items)
        return {name: mask & there for name, mask in out.items()}

    def trusted(self, block: Block) -> np.ndarray:
        """bool [B, W]: pairs known to be negative, which no guess may drop: two different groups, or a human said so."""
        out = np.zeros(block.items.shape, bool)
        if self.options.groups and self.options.trust_groups:
            out |= self.labelled_q[block.q][:, None] & self.labelled_c[block.items]
        if self.judged_negative is not None:
            out |= self.judged_negative.contains(block.q, block.items)
        return out & block.there


def first_reason(masks: dict[str, np.ndarray], trusted: np.ndarray) -> np.ndarray:
    """int8 [B, W]: the number of the first guard that drops a candidate, 0 where none does."""
    out = np.zeros(trusted.shape, np.int8)
    for number, name in enumerate(ORDER, 1):
        if name in masks:
            out[masks[name] & ~trusted & (out == 0)] = number
    return out
