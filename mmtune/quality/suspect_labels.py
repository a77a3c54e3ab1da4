"""Find rows whose group is probably wrong: a classifier that has not seen the row says another one (confident learning).

The classifier is a ridge regression from the embeddings to the groups. Its prediction for a row without that row follows from the fit
on all rows and the row's leverage, so that one solution serves for all rows (leave-one-out, Allen 1974). The thresholds are those of
confident learning (Northcutt et al. 2021, arXiv 1911.00068): a group's is the mean score of the rows that carry it. cleanlab does the
same from probabilities that the caller has cross-validated.
"""

from typing import NamedTuple

import numpy as np

RIDGE = 0.1
"""Regularisation, in units of the mean variance of a feature."""
BLOCK_BYTES = 64 << 20
"""Maximum bytes of scores in memory."""
MIN_AGREEMENT = 0.5
"""Neighbours or a classifier are no evidence if they agree with a smaller share of the labels."""


class Suspects(NamedTuple):
    """rows: positions of the rows whose label is suspected; predicted: the classes that the classifier says."""

    rows: np.ndarray
    predicted: np.ndarray


def suspect_labels(x_ND: np.ndarray, class_N: np.ndarray) -> Suspects:
    """Find suspected labels.

    x_ND: vectors of the rows
    class_N: class of each row, 0 to C - 1; every class has a row

    A row is suspected if another class has its highest score, at least that class's threshold, and its own class scores below half of
    its threshold. The result is empty if the classifier agrees with fewer than half of the labels.
    """
    classes = int(class_N.max(initial=-1)) + 1
    size_C = np.bincount(class_N, minlength=classes)
    x_ND = x_ND - x_ND.mean(0, dtype=np.float64)
    gram = x_ND.T @ x_ND
    ridge = RIDGE * max(float(np.trace(gram)) / len(gram), 1e-12)
    solved_DN = np.linalg.solve(gram + ridge * np.eye(len(gram)), x_ND.T)
    share_C = size_C / len(x_ND)
    weight_DC = np.zeros((len(gram), classes))
    np.add.at(weight_DC.T, class_N, solved_DN.T)
    weight_DC -= np.outer(solved_DN.sum(1), share_C)
    leverage_N = np.minimum(np.einsum("nd,dn->n", x_ND, solved_DN) + 1 / len(x_ND), 1 - 1e-9)
    step = max(1, BLOCK_BYTES // (8 * classes))
    best_N, top_N, own_N = np.empty(len(x_ND), np.int64), np.empty(len(x_ND)), np.empty(len(x_ND))
    for start in range(0, len(x_ND), step):
        part = slice(start, start + step)
        centred = np.tile(-share_C, (len(x_ND[part]), 1))
        row = np.arange(len(centred))
        centred[row, class_N[part]] += 1
        h = leverage_N[part, None]
        scores = (x_ND[part] @ weight_DC - h * centred) / (1 - h) + share_C  # without the row itself
        best_N[part] = scores.argmax(1)
        top_N[part], own_N[part] = scores[row, best_N[part]], scores[row, class_N[part]]
    if np.mean(best_N == class_N) < MIN_AGREEMENT:
        return Suspects(np.empty(0, np.int64), np.empty(0, np.int64))
    threshold_C = np.bincount(class_N, own_N, classes) / size_C
    suspected = (best_N != class_N) & (top_N >= threshold_C[best_N]) & (own_N < threshold_C[class_N] / 2)
    rows = np.flatnonzero(suspected & (threshold_C[best_N] > 0))
    return Suspects(rows, best_N[rows])
