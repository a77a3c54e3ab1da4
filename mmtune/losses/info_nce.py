"""InfoNCE with any number of positives per query, label smoothing, hardness-weighted negatives and generalised cross-entropy."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmtune.losses.contrastive import ContrastiveBlock
from mmtune.losses.families import contrastive_loss


@contrastive_loss
def info_nce(
    block: ContrastiveBlock,
    *,
    positives: Literal["mean", "mask", "sum"] = "mean",
    smoothing: float = 0.0,
    hardness: float = 0.0,
    robustness: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy over candidates, one value per query [R].

    van den Oord et al. 2018 (arXiv 1807.03748). Used in both directions it is the loss of CLIP (arXiv 2103.00020), in one
    direction the multiple-negatives ranking loss (Henderson et al. 2017, arXiv 1705.00652). With logits l = scale * cosine,
    and P the positives and N the negatives of a query:

    - `positives: mean`: the mean over p in P of -log(e^l_p / sum of e^l over P and N). This is L_out of SupCon (Khosla et al.
      2020, arXiv 2004.11362).
    - `positives: mask`: only the row's own pairs are positives, each compared with N. The other positives are ignored.
    - `positives: sum`: -log(sum of e^l over P / sum of e^l over P and N). This has the form of SupCon's L_in; UniCL's
      bidirectional loss uses the same set of positives.

    With graded relevance (`weights: COLUMN`), only row pairs are positives, and each counts in proportion to its weight w.
    `mean` and `mask` become weighted means (generalised contrastive learning, Zhu et al. 2024, arXiv 2404.08535). In `sum`,
    the terms of the sums over P become w * e^l, with w scaled to mean 1 over P.

    smoothing: share of the target distribution that is moved from the positives evenly to all candidates; not with `sum`
    hardness: b > 0 weights each negative by e^(b * l), scaled to mean 1 over N (Robinson et al. 2021, arXiv 2010.04592)
    robustness: q in (0, 1] replaces each -log p above by (1 - p^q) / q, generalised cross-entropy (Zhang and Sabuncu 2018, arXiv
        1805.07836): pairs that the model finds improbable, such as wrong captions, get small gradients. q -> 0 is -log p
    """
    logits = block.similarity * block.scale
    # Queries without a positive have weight 0 in the mean, but their infinite values would still turn it into NaN.
    has_positive = block.positives.any(1)
    positive_logits = logits.masked_fill(~block.positives, -math.inf)
    if positives == "sum" and block.graded:
        positive_logits = positive_logits + _log_weights(block)
    if positives == "mean" and not hardness:
        normaliser = torch.logsumexp(logits.masked_fill(~(block.positives | block.negatives), -math.inf), 1)
    else:
        normaliser = _log_sum_of_negatives(logits, block.negatives, hardness)
        if positives != "mask":
            normaliser = torch.logaddexp(torch.logsumexp(positive_logits, 1), normaliser)
    if positives == "sum":
        attained = torch.where(has_positive, torch.logsumexp(positive_logits, 1) - normaliser, 0.0)
        return _cross_entropy(attained, robustness)
    share = _shares(block) if positives == "mask" or block.graded else block.positives / _count(block.positives)
    attained = (share * logits).sum(1)
    if positives == "mask":
        # For each row pair: log(e^l + sum of e^l over N) - l. The loss of a query without negatives is 0.
        value = (share * _cross_entropy(-softplus(normaliser[:, None] - logits), robustness)).sum(1)
    elif robustness:
        log_p = torch.where(share > 0, logits - normaliser[:, None], 0.0)
        value = (share * _cross_entropy(log_p, robustness)).sum(1)
    else:
        value = normaliser - attained
    if smoothing:
        targets = share > 0 if positives == "mask" else block.positives
        candidates = targets | block.negatives
        value = value + smoothing * (attained - ((logits * candidates).sum(1, keepdim=True) / _count(candidates)).squeeze(1))
    return torch.where(has_positive, value, 0.0)


def _cross_entropy(log_p: Tensor, q: float) -> Tensor:
    """-log p for q = 0, otherwise (1 - p^q) / q."""
    return -torch.expm1(q * log_p) / q if q else -log_p


def _count(mask: Tensor) -> Tensor:
    """Number of candidates marked for each query, at least 1 [R, 1]."""
    return mask.sum(1, keepdim=True).clamp_min(1)


def _shares(block: ContrastiveBlock) -> Tensor:
    """Weights of the row pairs among the positives, divided by their sum for each query [R, C]."""
    weight = block.row_pair_weights() * block.positives
    return weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)


def _log_weights(block: ContrastiveBlock) -> Tensor:
    """Log of the weights of graded positives, scaled to mean 1 over each query's positives; 0 for all other pairs [R, C]."""
    weight = _shares(block) * _count(block.positives)
    return torch.where(block.positives, weight, 1.0).log()


def _log_sum_of_negatives(logits: Tensor, negatives: Tensor, hardness: float) -> Tensor:
    """Log of the (hardness-weighted) sum of e^l over each query's negatives [R]; -inf for a query without negatives."""
    negative_logits = logits.masked_fill(~negatives, -math.inf)
    if not hardness:
        return torch.logsumexp(negative_logits, 1)
    has_negative = negatives.any(1)
    # Rows without negatives are set to 0 here, because all -inf would give NaN gradients.
    finite = torch.where(has_negative[:, None], negative_logits, torch.zeros_like(logits))
    log_count = negatives.sum(1).clamp_min(1).log()
    weighted = torch.logsumexp((1 + hardness) * finite, 1) - torch.logsumexp(hardness * finite, 1) + log_count
    return weighted.masked_fill(~has_negative, -math.inf)
