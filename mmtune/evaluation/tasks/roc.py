"""Areas under the ROC curve from scores and labels; a tie between a positive and a negative counts half."""

import numpy as np

from mmtune.errors import DataError

MAX_FPR = 0.1  # as in DCASE task 2: only this part of the curve matters, as a detector with many false alarms is not used


def auroc(score_N: np.ndarray, positive_N: np.ndarray, weight_N: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the probability that a positive scores higher than a negative. weight_N: counts of the rows.

    Raises DataError if there are only positives or only negatives, or if a score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_check(score_N, positive_N), sample_weight=weight_N))


def partial_auroc(
    score_N: np.ndarray, positive_N: np.ndarray, max_fpr: float = MAX_FPR, weight_N: np.ndarray | None = None
) -> float:
    """Area up to the false positive rate `max_fpr`, standardised to 0.5 for chance and 1 for perfect (McClish 1989).

    Raises DataError like `auroc`.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_check(score_N, positive_N), max_fpr=max_fpr, sample_weight=weight_N))


def _check(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels, scores) as scikit-learn expects them; see `auroc` for the DataError."""
    score_N, positive_N = np.asarray(score_N, np.float64), np.asarray(positive_N, bool)
    if not np.isfinite(score_N).all():
        raise DataError(f"{int((~np.isfinite(score_N)).sum())} of {len(score_N)} scores are not finite")
    if positive_N.all() or not positive_N.any():
        raise DataError(f"a ROC curve needs positives and negatives: {int(positive_N.sum())} of {len(positive_N)} are positive")
    return positive_N, score_N
