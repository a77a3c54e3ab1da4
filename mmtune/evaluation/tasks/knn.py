"""Nearest neighbours that may be barred (the item itself, clips of its own recording), and what they vote for: weighted k
nearest neighbours (Wu et al., arXiv 1805.01978, 3.4)."""

from collections.abc import Sequence

import numpy as np

from mmtune.errors import DataError
from mmtune.search.exact import topk

NEIGHBOURS, TEMPERATURE = 5, 0.07  # the weight of a neighbour is exp(cosine / 0.07), as there


def nearest(
    q_QD: np.ndarray,
    r_ND: np.ndarray,
    k: int,
    bars: tuple[np.ndarray, np.ndarray] | None = None,
    order: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest allowed references of each query: (cosines [Q, k] float64, positions [Q, k]); -inf and -1 where there
    are fewer.

    bars: labels of queries [Q] and references [N]; equal non-zero ones never meet. order: how ties fall (`tie_order`).
    """
    most = 0
    if bars is not None and bars[1].any():
        most = int(np.unique(bars[1][bars[1] != 0], return_counts=True)[1].max())
    score, found = topk(q_QD, r_ND, min(len(r_ND), k + most), order=order)
    allowed = np.ones(found.shape, bool)
    if bars is not None:
        allowed = (bars[0][:, None] != bars[1][found]) | (bars[0][:, None] == 0)
    front = np.argsort(~allowed, axis=1, kind="stable")[:, :k]  # the allowed ones first, in their order
    score, found = np.take_along_axis(score, front, 1).astype(np.float64), np.take_along_axis(found, front, 1)
    gone = ~np.take_along_axis(allowed, front, 1)
    score[gone], found[gone] = -np.inf, -1
    missing = max(0, k - score.shape[1])
    return np.pad(score, ((0, 0), (0, missing)), constant_values=-np.inf), np.pad(
        found, ((0, 0), (0, missing)), constant_values=-1
    )


def vote(score_QK: np.ndarray, class_QK: np.ndarray, classes: int) -> np.ndarray:
    """[Q] the class with the heaviest neighbours; ties go to the last class, as everywhere. Queries without neighbours: 0."""
    out = np.zeros(len(score_QK), np.int64)
    for start in range(0, len(out), 1024):
        part = slice(start, start + 1024)
        votes = np.zeros((len(out[part]), classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], class_QK[part]), np.exp(score_QK[part] / TEMPERATURE))
        out[part] = np.where(votes.any(1), classes - 1 - votes[:, ::-1].argmax(1), 0)
    return out


def by_reference(
    q_QD: np.ndarray, reference_ND: np.ndarray, names: Sequence[str], k: int = NEIGHBOURS, order: np.ndarray | None = None
) -> list[str]:
    """The class of each query by its `k` nearest references, whose classes are `names` [N]. DataError for one class only."""
    classes = sorted(set(names))
    if len(classes) < 2:
        raise DataError(f"{len(classes)} class among the references; neighbours have nothing to decide")
    number = {c: i for i, c in enumerate(classes)}
    of_reference = np.array([number[n] for n in names], np.int64)
    score, found = nearest(q_QD, reference_ND, k, order=order)
    return [classes[i] for i in vote(score, of_reference[found], len(classes))]
