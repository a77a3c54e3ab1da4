"""Distillation: what a teacher says about the same pairs, or the same items, as a target."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtune.errors import RecipeError


@dataclass(slots=True)
class Taught:
    """Q queries against C candidates as the student and its teacher see them.

    sim [Q, C] the student's cosines, scale its temperature factor; scores [Q, C] the teacher's, NaN where it said nothing;
    pos, neg [Q, C] bool; features: (student [N, T], teacher [N, T]) vectors of the same items, the student's projected
    where the widths differ, or None for a teacher that only scores.
    """

    sim: Tensor
    scores: Tensor
    pos: Tensor
    neg: Tensor
    scale: Tensor
    features: tuple[Tensor, Tensor] | None = None


def kl(taught: Taught, *, temperature: float = 0.05) -> Tensor:
    """KL(teacher || student) over each query's list of scored candidates, the mean over queries with at least two.

    Hinton et al. 2015 (arXiv 1503.02531); for dual encoders CLIP-KD's interactive and relational terms (Yang et al. 2024,
    2307.12732). The teacher's softmax takes scores / temperature, the student's scale * cosine.
    """
    known = torch.isfinite(taught.scores)
    known = known & (known.sum(1, keepdim=True) >= 2)
    use = known.any(1)
    if not bool(use.any()):
        return taught.sim.sum() * 0
    known = known[use]
    teacher = (taught.scores[use] / temperature).masked_fill(~known, -torch.inf).log_softmax(1)
    student = (taught.sim[use] * taught.scale).masked_fill(~known, -torch.inf).log_softmax(1)
    each = torch.where(known, teacher.exp() * (torch.where(known, teacher, 0.0) - torch.where(known, student, 0.0)), 0.0)
    return each.sum(1).mean()


def score_mse(taught: Taught) -> Tensor:
    """Mean squared difference of the student's cosine and the teacher's score over scored pairs; scores lie in [-1, 1]."""
    known = torch.isfinite(taught.scores)
    gap = torch.where(known, taught.sim - torch.where(known, taught.scores, 0.0), 0.0)
    return gap.square().sum() / known.sum().clamp_min(1)


def margin_mse(taught: Taught, *, factor: float = 1.0) -> Tensor:
    """((s_p - s_n) - factor * (t_p - t_n))^2, the mean over scored positives p and negatives n, then over queries.

    MarginMSE (Hofstaetter et al. 2020, arXiv 2010.02666): a teacher's scores need not lie where cosines do, only their
    differences are learned; `factor` brings these to a cosine's size. With g = s - factor * t the mean of (g_p - g_n)^2 is
    mean g_p^2 + mean g_n^2 - 2 mean g_p mean g_n, so no triple is ever formed.
    """
    known = torch.isfinite(taught.scores)
    gap = taught.sim - factor * torch.where(known, taught.scores, 0.0)

    def moments(of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = of.sum(1)
        kept = torch.where(of, gap, 0.0)
        return n, kept.sum(1) / n.clamp_min(1), kept.square().sum(1) / n.clamp_min(1)

    (np, p, pp), (nn, n, nn2) = moments(taught.pos & known), moments(taught.neg & known)
    use = (np > 0) & (nn > 0)
    return torch.where(use, pp + nn2 - 2 * p * n, 0.0).sum() / use.sum().clamp_min(1)


def feature(taught: Taught, *, projection: bool = False) -> Tensor:
    """Squared distance of the student's (projected) vector and the teacher's, summed over dimensions, mean over items.

    Feature distillation alone gives most of CLIP-KD's gain (Yang et al. 2024, arXiv 2307.12732). Where the widths differ, or
    with `projection`, a linear map of the student's vectors is learned beside it and thrown away after training.
    """
    if taught.features is None:
        raise RecipeError("the feature loss needs a teacher with vectors (`model:`), this one only scores pairs")
    student, teacher = taught.features
    return (student - teacher).square().sum(1).mean()
