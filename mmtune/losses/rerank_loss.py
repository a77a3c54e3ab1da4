"""Losses of re-rankers: functions of the scores of a positive and its negatives, for many queries at once."""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

RerankLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Function (scores [L, 1 + K], valid bool [L, 1 + K]) -> scalar; the first column is the positive, scores that are not valid are -inf."""


def softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Listwise cross-entropy: -log of the softmax probability of the positive, averaged over the lists."""
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def binary(scores: Tensor, valid: Tensor) -> Tensor:
    """Pointwise binary cross-entropy of positive and negatives, which have the same weight together, averaged over the lists."""
    negative = torch.where(valid, F.softplus(scores.masked_fill(~valid, 0.0)), 0.0)[:, 1:].sum(1)
    return (F.softplus(-scores[:, 0]) + negative / valid[:, 1:].sum(1).clamp(min=1)).mean()


LOSSES: dict[str, RerankLoss] = {"softmax": softmax, "binary": binary}
"""{name in the recipe's `cross_encoder.loss`: function}."""
