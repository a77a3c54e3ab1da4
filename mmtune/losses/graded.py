"""Losses on graded similarity: the cosine of each row's own pair against a numeric column of the data."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmtune.losses.families import scored_pairs_loss


@dataclass(slots=True)
class ScoredPairs:
    """The N pairs that stand in one row of the batch each: similarity [N], the cosine; score [N], the column's value."""

    similarity: Tensor
    score: Tensor


@scored_pairs_loss
def mse(pairs: ScoredPairs, *, column: str = "score") -> Tensor:
    """Mean squared difference of cosine and score; scores lie in [-1, 1]. Sentence-BERT's regression (arXiv 1908.10084)."""
    return (pairs.similarity - pairs.score).square().mean()


@scored_pairs_loss
def cosine(pairs: ScoredPairs, *, column: str = "score", margin: float = 0.0, threshold: float = 0.5) -> Tensor:
    """1 - cosine where the score reaches `threshold`, max(0, cosine - margin) elsewhere; the mean over pairs.

    Hadsell et al. 2006, as in torch's CosineEmbeddingLoss.
    """
    similar = pairs.score >= threshold
    return torch.where(similar, 1 - pairs.similarity, torch.relu(pairs.similarity - margin)).mean()


@scored_pairs_loss
def cosent(pairs: ScoredPairs, *, column: str = "score", scale: float = 20.0) -> Tensor:
    """log(1 + sum of e^(scale * (cos_j - cos_i)) over all i, j where score_i > score_j): only the order of scores counts.

    CoSENT (Su 2022, kexue.fm/archives/8847). Sorted by score, the inner sums are prefixes: O(N log N) time, O(N) memory.
    """
    score, order = pairs.score.sort(stable=True)
    logits = pairs.similarity[order] * scale
    lower = torch.searchsorted(score, score)  # how many pairs have a strictly lower score
    has_lower = lower > 0
    if not bool(has_lower.any()):
        return (logits * 0).sum()
    prefix = torch.logcumsumexp(logits, 0)[(lower - 1).clamp_min(0)]
    return softplus(torch.logsumexp((prefix - logits)[has_lower], 0))


SCORE_RANGES = {"mse": (-1.0, 1.0)}
"""Loss -> (lowest, highest) score it takes; the others take any finite number."""
