"""Areas under the ROC curve from scores and truth, ties counted half, as scikit-learn's `roc_auc_score`."""

import numpy as np

from mmtune.errors import DataError

MAX_FPR = 0.1  # false alarms cost a plant its trust: DCASE's task 2 judges the first tenth of the curve, too


def roc_curve(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rates, true positive rates), ascending from (0, 0) to (1, 1), a point a distinct score.

    Raises DataError when there are only positives or only negatives, or a score is not a number.
    """
    score_N, positive_N = np.asarray(score_N, np.float64), np.asarray(positive_N, bool)
    if not np.isfinite(score_N).all():
        raise DataError(f"{int((~np.isfinite(score_N)).sum())} of {len(score_N)} scores are not finite")
    if positive_N.all() or not positive_N.any():
        raise DataError(f"a ROC curve needs both kinds: {int(positive_N.sum())} of {len(positive_N)} are positive")
    order = np.argsort(-score_N, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score_N[order])), len(order) - 1)  # the last of each run of equal scores
    hits, alarms = np.cumsum(positive_N[order])[last], np.cumsum(~positive_N[order])[last]
    return np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1])


def auroc(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The chance that a positive scores higher than a negative."""
    fpr, tpr = roc_curve(score_N, positive_N)
    return float(np.trapezoid(tpr, fpr))


def partial_auroc(score_N: np.ndarray, positive_N: np.ndarray, max_fpr: float = MAX_FPR) -> float:
    """The area left of `max_fpr`, standardised to 0.5 for chance and 1 for perfect (McClish 1989)."""
    fpr, tpr = roc_curve(score_N, positive_N)
    stop = int(np.searchsorted(fpr, max_fpr, "right"))
    end = np.interp(max_fpr, fpr[stop - 1 : stop + 1], tpr[stop - 1 : stop + 1])
    area = np.trapezoid(np.append(tpr[:stop], end), np.append(fpr[:stop], max_fpr))
    chance = 0.5 * max_fpr**2
    return float(0.5 * (1 + (area - chance) / (max_fpr - chance)))
