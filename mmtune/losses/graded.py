"""Losses for graded similarity. They compare the cosine of each row's own pair with a numeric column of the data."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmtune.losses.families import scored_pairs_loss


@dataclass(slots=True)
class ScoredPairs:
    """N pairs, each formed by the two modalities of one row of the batch.

    similarity: cosine of each pair [N]
    score: value of the numeric column for each pair [N]
    """

    similarity: Tensor
    score: Tensor


@scored_pairs_loss
def mse(pairs: ScoredPairs, *, column: str = "score") -> Tensor:
    """Mean squared difference of cosine and score, for scores in [-1, 1]. Regression loss of Sentence-BERT (arXiv 1908.10084)."""
    return (pairs.similarity - pairs.score).square().mean()


@scored_pairs_loss
def cosine(pairs: ScoredPairs, *, column: str = "score", margin: float = 0.0, threshold: float = 0.5) -> Tensor:
    """Mean over pairs of 1 - cosine if the score is at least `threshold`, else max(0, cosine - margin).

    Hadsell et al. 2006, in the form of torch's CosineEmbeddingLoss.
    """
    similar = pairs.score >= threshold
    return torch.where(similar, 1 - pairs.similarity, torch.relu(pairs.similarity - margin)).mean()


@scored_pairs_loss
def cosent(pairs: ScoredPairs, *, column: str = "score", scale: float = 20.0) -> Tensor:
    """log(1 + sum of e^(scale * (cos_j - cos_i)) over all i, j with score_i > score_j). Only the order of the scores matters.

    CoSENT (Su 2022, kexue.fm/archives/8847). After sorting by score, each inner sum over j is a prefix sum. This takes
    O(N log N) time and O(N) memory.
    """
    score, order = pairs.score.sort(stable=True)
    logits = pairs.similarity[order] * scale
    lower = torch.searchsorted(score, score)  # number of pairs with a strictly lower score
    has_lower = lower > 0
    if not bool(has_lower.any()):
        return (logits * 0).sum()
    prefix = torch.logcumsumexp(logits, 0)[(lower - 1).clamp_min(0)]
    return softplus(torch.logsumexp((prefix - logits)[has_lower], 0))


SCORE_RANGES = {"mse": (-1.0, 1.0)}
"""{loss: (lowest, highest) allowed score}. Losses that are not listed allow any finite score."""
