"""Triplet margin loss with the hardest or semi-hard negatives of the batch."""

import math
from typing import Literal

import torch
from torch import Tensor

from mmtune.losses.contrastive import ContrastiveBlock
from mmtune.losses.families import contrastive_loss


@contrastive_loss
def triplet(
    block: ContrastiveBlock,
    *,
    margin: float = 0.2,
    distance: Literal["cosine", "euclidean"] = "cosine",
    mining: Literal["hard", "semi_hard"] = "hard",
) -> Tensor:
    """max(0, d(query, positive) - d(query, negative) + margin), one value per query [R].

    mining: how the pairs of positive and negative are chosen
        hard: the farthest positive and the nearest negative (Hermans et al. 2017, arXiv 1703.07737)
        semi_hard: each positive with the nearest negative that is farther away than the positive, or with the farthest
            negative if there is none; the mean over positives (FaceNet, Schroff et al. 2015, arXiv 1503.03832)
    distance: cosine is 1 - cosine similarity; euclidean is the Euclidean distance of the L2-normalised embeddings

    The loss of a query without negatives is 0.
    """
    d = 1 - block.similarity
    if distance == "euclidean":
        d = (2 * d).clamp_min(1e-12).sqrt()
    has_negative = block.negatives.any(1)
    if mining == "hard":
        positive = d.masked_fill(~block.positives, -math.inf).amax(1)
        negative = d.masked_fill(~block.negatives, math.inf).amin(1)
        used = has_negative & block.positives.any(1)
        gap = torch.where(used, positive, 0.0) - torch.where(used, negative, 0.0)
        return torch.where(used, torch.relu(gap + margin), 0.0)
    order = d.masked_fill(~block.negatives, math.inf).sort(1).values
    farther = torch.searchsorted(order.detach().contiguous(), d.detach().contiguous(), right=True)
    last = (block.negatives.sum(1, keepdim=True) - 1).clamp_min(0)
    negative = order.gather(1, torch.minimum(farther, last))
    use = block.positives & has_negative[:, None]
    each = torch.relu(torch.where(use, d - torch.where(use, negative, 0.0) + margin, 0.0))
    return each.sum(1) / block.positives.sum(1).clamp_min(1)
