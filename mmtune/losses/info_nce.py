"""InfoNCE with any number of positives, label smoothing and hardness-weighted negatives."""

import math
from typing import Literal

import torch
from torch import Tensor

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
    - `positives: mask`: own pairs only, each against N; other positives are left out of the sum. Weighted rows
      (`weights: COLUMN`) weigh their own pair: generalised contrastive learning (Zhu et al. 2024, 2404.08535).
    - `positives: sum`: -log(sum over P of e^l / sum over P and N): L_in's form, UniCL's bidirectional target as a set.

    `smoothing` moves that share of the target from the positives to all candidates evenly (`sum` takes none).
    `hardness` b > 0 weighs each negative by e^(b l), normalised to mean 1 over N: Robinson et al. 2021 (2010.04592).
    """
    logits = block.similarity * block.scale
    positive = logits.masked_fill(~block.positives, -math.inf)
    some = block.positives.any(1)  # the others weigh nothing; their -inf must not reach the sum
    count = block.positives.sum(1).clamp_min(1)
    if positives == "mean" and not hardness:
        total = torch.logsumexp(logits.masked_fill(~(block.positives | block.negatives), -math.inf), 1)
    else:
        against = _negatives(logits, block.negatives, hardness)
        total = torch.logaddexp(torch.logsumexp(positive, 1), against) if positives != "mask" else against
    if positives == "mean":
        attained = (logits * block.positives).sum(1) / count
        value = total - attained
    elif positives == "sum":
        value = total - torch.logsumexp(positive, 1)
        return torch.where(some, value, 0.0)
    else:
        weight = block.row_pair_weights() * block.positives
        share = weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        # log(e^l + sum over N) - l of each own pair; a query without negatives has nothing to lose
        each = torch.nn.functional.softplus(total[:, None] - logits)
        value = (share * each).sum(1)
        attained = (share * logits).sum(1)
    if smoothing:
        candidates = block.positives | block.negatives
        even = (logits * candidates).sum(1) / candidates.sum(1).clamp_min(1)
        value = value + smoothing * (attained - even)
    return torch.where(some, value, 0.0)


def _negatives(logits: Tensor, neg: Tensor, hardness: float) -> Tensor:
    """log of the (hardness-weighted) sum over negatives of e^l; -inf without negatives."""
    plain = logits.masked_fill(~neg, -math.inf)
    if not hardness:
        return torch.logsumexp(plain, 1)
    count = neg.sum(1).clamp_min(1)
    some = neg.any(1)
    safe = torch.where(some[:, None], plain, torch.zeros_like(plain))  # rows without negatives: kept out of the NaNs
    harder = torch.logsumexp((1 + hardness) * safe, 1) - torch.logsumexp(hardness * safe, 1) + count.log()
    return harder.masked_fill(~some, -math.inf)
