"""Graded similarity: the cosine of each row's own pair against a numeric column of the data."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(slots=True)
class Scored:
    """cos [N] cosine of each row's own pair, score [N] what the column says."""

    cos: Tensor
    score: Tensor


def mse(pairs: Scored, *, column: str = "score") -> Tensor:
    """Mean squared difference of cosine and score; scores lie in [-1, 1]. Sentence-BERT's regression (arXiv 1908.10084)."""
    return (pairs.cos - pairs.score).square().mean()


def cosine(pairs: Scored, *, column: str = "score", margin: float = 0.0, threshold: float = 0.5) -> Tensor:
    """1 - cosine where the score reaches `threshold`, max(0, cosine - margin) elsewhere; the mean over pairs.

    Hadsell et al. 2006, as in torch's CosineEmbeddingLoss.
    """
    alike = pairs.score >= threshold
    return torch.where(alike, 1 - pairs.cos, torch.relu(pairs.cos - margin)).mean()


def cosent(pairs: Scored, *, column: str = "score", scale: float = 20.0) -> Tensor:
    """log(1 + sum of e^(scale * (cos_j - cos_i)) over all i, j where score_i > score_j): only the order of scores counts.

    CoSENT (Su 2022, kexue.fm/archives/8847). Sorted by score, the inner sums are prefixes: O(N log N) time, O(N) memory.
    """
    score, order = pairs.score.sort(stable=True)
    logit = pairs.cos[order] * scale
    below = torch.searchsorted(score, score)  # how many pairs score strictly less
    some = below > 0
    if not bool(some.any()):
        return (logit * 0).sum()
    prefix = torch.logcumsumexp(logit, 0)[(below - 1).clamp_min(0)]
    return softplus(torch.logsumexp((prefix - logit)[some], 0))


RANGES = {"mse": (-1.0, 1.0)}
"""Loss -> the scores it takes; the others take any finite number."""
