"""InfoNCE with any number of positives, label smoothing and hardness-weighted negatives."""

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
) -> Tensor:
    """Softmax cross-entropy over candidates, one value a query [R].

    van den Oord et al. 2018 (arXiv 1807.03748); in both directions CLIP's (2103.00020), in one direction multiple-negatives
    ranking (Henderson et al. 2017, 1705.00652). With logits l = scale * cosine, P the positives and N the negatives of a query:

    - `positives: mean`: mean over p in P of -log(e^l_p / sum over P and N): SupCon's L_out (Khosla et al. 2020, 2004.11362).
    - `positives: mask`: row pairs only, each against N; other positives are ignored.
    - `positives: sum`: -log(sum over P of e^l / sum over P and N): L_in's form, UniCL's bidirectional target as a set.

    With graded relevance (`weights: COLUMN`) the positives are the row pairs, and a query's positives count in proportion to
    their weights w: in the means of `mean` and `mask` (generalised contrastive learning, Zhu et al. 2024, 2404.08535), and in
    the sums over P of `sum`, whose terms are w e^l with w scaled to mean 1 over P.
    `smoothing` moves that share of the target from the positives to all candidates evenly (`sum` takes none).
    `hardness` b > 0 weights each negative by e^(b l), normalised to mean 1 over N: Robinson et al. 2021 (2010.04592).
    """
    logits = block.similarity * block.scale
    has_positive = block.positives.any(1)  # the other queries have weight 0; their -inf must not reach the sum
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
        return torch.where(has_positive, normaliser - torch.logsumexp(positive_logits, 1), 0.0)
    share = _shares(block) if positives == "mask" or block.graded else block.positives / _count(block.positives)
    attained = (share * logits).sum(1)
    if positives == "mask":
        # log(e^l + sum over N) - l of each row pair; a query without negatives has loss 0
        value = (share * softplus(normaliser[:, None] - logits)).sum(1)
    else:
        value = normaliser - attained
    if smoothing:
        targets = share > 0 if positives == "mask" else block.positives
        candidates = targets | block.negatives
        value = value + smoothing * (attained - ((logits * candidates).sum(1, keepdim=True) / _count(candidates)).squeeze(1))
    return torch.where(has_positive, value, 0.0)


def _count(mask: Tensor) -> Tensor:
    """[R, 1] marked candidates of each query, at least 1."""
    return mask.sum(1, keepdim=True).clamp_min(1)


def _shares(block: ContrastiveBlock) -> Tensor:
    """[R, C] the weights of the row pairs among the positives, divided by their sum over each query."""
    weight = block.row_pair_weights() * block.positives
    return weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)


def _log_weights(block: ContrastiveBlock) -> Tensor:
    """[R, C] log of the weights of graded positives, scaled to mean 1 over each query's positives; 0 elsewhere."""
    weight = _shares(block) * _count(block.positives)
    return torch.where(block.positives, weight, 1.0).log()


def _log_sum_of_negatives(logits: Tensor, negatives: Tensor, hardness: float) -> Tensor:
    """log of the (hardness-weighted) sum over negatives of e^l [R]; -inf without negatives."""
    negative_logits = logits.masked_fill(~negatives, -math.inf)
    if not hardness:
        return torch.logsumexp(negative_logits, 1)
    has_negative = negatives.any(1)
    finite = torch.where(has_negative[:, None], negative_logits, torch.zeros_like(logits))  # keeps NaN out of the gradient
    log_count = negatives.sum(1).clamp_min(1).log()
    weighted = torch.logsumexp((1 + hardness) * finite, 1) - torch.logsumexp(hardness * finite, 1) + log_count
    return weighted.masked_fill(~has_negative, -math.inf)
