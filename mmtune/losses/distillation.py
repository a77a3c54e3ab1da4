"""Distillation losses. Their targets are a frozen teacher's scores of the same pairs, or its embeddings of the same items."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtune.errors import RecipeError
from mmtune.losses.families import distillation_loss


@dataclass(slots=True)
class DistillationBlock:
    """Q queries against C candidates: the student's similarities and the teacher's scores.

    similarity: the student's cosines [Q, C]
    teacher_scores: the teacher's scores [Q, C]; NaN for pairs that it did not score
    positives, negatives: bool masks [Q, C]
    scale: the exponential of the student's learned logit scale
    features: (student [N, T], teacher [N, T]) embeddings of the same items. If the dimensions differ, the student's embeddings
        are already projected to the teacher's dimension. None for a teacher that only scores pairs
    """

    similarity: Tensor
    teacher_scores: Tensor
    positives: Tensor
    negatives: Tensor
    scale: Tensor
    features: tuple[Tensor, Tensor] | None = None


@distillation_loss
def kl(block: DistillationBlock, *, temperature: float = 0.05) -> Tensor:
    """KL(teacher || student) over each query's scored candidates, averaged over queries with at least two of them.

    Hinton et al. 2015 (arXiv 1503.02531). For dual encoders it corresponds to the interactive and relational terms of CLIP-KD
    (Yang et al. 2024, arXiv 2307.12732). Both distributions are softmaxes over the scored candidates: the teacher's of
    scores / temperature, the student's of scale * cosine.
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
    """Mean squared difference between the student's cosine and the teacher's score, over scored pairs. Scores lie in [-1, 1]."""
    scored = torch.isfinite(block.teacher_scores)
    difference = torch.where(scored, block.similarity - torch.where(scored, block.teacher_scores, 0.0), 0.0)
    return difference.square().sum() / scored.sum().clamp_min(1)


@distillation_loss
def margin_mse(block: DistillationBlock, *, factor: float = 1.0) -> Tensor:
    """Mean of ((s_p - s_n) - factor * (t_p - t_n))^2 over a query's scored positives p and negatives n, then over queries.

    s is the student's cosine and t the teacher's score. MarginMSE (Hofstaetter et al. 2020, arXiv 2010.02666) learns only
    differences of scores, so the teacher's scores may have any range; `factor` rescales them to the range of a cosine.

    With g = s - factor * t, the mean of (g_p - g_n)^2 equals mean g_p^2 + mean g_n^2 - 2 * mean g_p * mean g_n. It is computed
    in this form, which needs no list of (query, positive, negative) triples.
    """
    scored = torch.isfinite(block.teacher_scores)
    gap = block.similarity - factor * torch.where(scored, block.teacher_scores, 0.0)

    def moments(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(count, mean of the gap, mean of the squared gap) of each query, over the candidates where `mask` is True."""
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
    """Squared distance between the student's and the teacher's embedding, summed over dimensions and averaged over items.

    Feature distillation alone gives most of the improvement of CLIP-KD (Yang et al. 2024, arXiv 2307.12732). If the embedding
    dimensions differ, or with `projection: true`, a linear projection of the student's embeddings is learned too. It is
    discarded after training.
    """
    if block.features is None:
        raise RecipeError("the feature loss needs a teacher with embeddings (`model:`), but this teacher only scores pairs")
    student, teacher = block.features
    return (student - teacher).square().sum(1).mean()
