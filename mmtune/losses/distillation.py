"""Distillation losses: a frozen teacher's scores of the same pairs, or its vectors of the same items, as targets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtune.errors import RecipeError
from mmtune.losses.families import distillation_loss


@dataclass(slots=True)
class DistillationBlock:
    """Q queries against C candidates: similarities of the student beside scores of its teacher.

    similarity [Q, C] the student's cosines; teacher_scores [Q, C], NaN for pairs that the teacher did not score; positives,
    negatives [Q, C] bool; scale the model's exponentiated logit scale; features: (student [N, T], teacher [N, T]) vectors of
    the same items, the student's projected where the widths differ, or None for a teacher that only scores pairs.
    """

    similarity: Tensor
    teacher_scores: Tensor
    positives: Tensor
    negatives: Tensor
    scale: Tensor
    features: tuple[Tensor, Tensor] | None = None


@distillation_loss
def kl(block: DistillationBlock, *, temperature: float = 0.05) -> Tensor:
    """KL(teacher || student) over each query's list of scored candidates, the mean over queries with at least two.

    Hinton et al. 2015 (arXiv 1503.02531); for dual encoders CLIP-KD's interactive and relational terms (Yang et al. 2024,
    2307.12732). The teacher's softmax takes scores / temperature, the student's scale * cosine.
    """
    scored = torch.isfinite(block.teacher_scores)
    scored = scored & (scored.sum(1, keepdim=True) >= 2)
    used = scored.any(1)
    if not bool(used.any()):
        return block.similarity.sum() * 0
    scored = scored[used]
    teacher = (block.teacher_scores[used] / temperature).masked_fill(~scored, -torch.inf).log_softmax(1)
    student = (block.similarity[used] * block.scale).masked_fill(~scored, -torch.inf).log_softmax(1)
    difference = torch.where(scored, teacher, 0.0) - torch.where(scored, student, 0.0)
    return torch.where(scored, teacher.exp() * difference, 0.0).sum(1).mean()


@distillation_loss
def score_mse(block: DistillationBlock) -> Tensor:
    """Mean squared difference of the student's cosine and the teacher's score over scored pairs; scores lie in [-1, 1]."""
    scored = torch.isfinite(block.teacher_scores)
    difference = torch.where(scored, block.similarity - torch.where(scored, block.teacher_scores, 0.0), 0.0)
    return difference.square().sum() / scored.sum().clamp_min(1)


@distillation_loss
def margin_mse(block: DistillationBlock, *, factor: float = 1.0) -> Tensor:
    """((s_p - s_n) - factor * (t_p - t_n))^2, the mean over scored positives p and negatives n, then over queries.

    MarginMSE (Hofstaetter et al. 2020, arXiv 2010.02666): a teacher's scores need not have a cosine's range, only their
    differences are learned; `factor` scales these to a cosine's. With g = s - factor * t the mean of (g_p - g_n)^2 is
    mean g_p^2 + mean g_n^2 - 2 mean g_p mean g_n, so no triple is ever formed.
    """
    scored = torch.isfinite(block.teacher_scores)
    gap = block.similarity - factor * torch.where(scored, block.teacher_scores, 0.0)

    def moments(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(count, mean of the gap, mean of its square) of each query over the marked candidates."""
        count = mask.sum(1)
        kept = torch.where(mask, gap, 0.0)
        return count, kept.sum(1) / count.clamp_min(1), kept.square().sum(1) / count.clamp_min(1)

    positive_count, positive_mean, positive_square = moments(block.positives & scored)
    negative_count, negative_mean, negative_square = moments(block.negatives & scored)
    used = (positive_count > 0) & (negative_count > 0)
    per_query = positive_square + negative_square - 2 * positive_mean * negative_mean
    return torch.where(used, per_query, 0.0).sum() / used.sum().clamp_min(1)


@distillation_loss
def feature(block: DistillationBlock, *, projection: bool = False) -> Tensor:
    """Squared distance of the student's (projected) vector and the teacher's, summed over dimensions, mean over items.

    Feature distillation alone gives most of CLIP-KD's gain (Yang et al. 2024, arXiv 2307.12732). Where the widths differ, or
    with `projection`, a linear map of the student's vectors is learned as well, and discarded after training.
    """
    if block.features is None:
        raise RecipeError("the feature loss needs a teacher with vectors (`model:`), this one only scores pairs")
    student, teacher = block.features
    return (student - teacher).square().sum(1).mean()
