"""A random sample of queries, and the interval in which the mean over all queries lies."""

import hashlib

import numpy as np
from scipy.stats import t as student

from mmtune.relevance.positives import RelevantBlock
from mmtune.relevance.ragged import Ragged

CONFIDENCE = 0.95
PSEUDO = (0.0, 0.0, 1.0, 1.0)
"""Values that are added to metrics within [0, 1], so that the interval is not empty if all queries have the same value (adjusted Wald
interval, Agresti and Coull 1998)."""


def sample_queries(modality: str, total: int, wanted: int | None) -> np.ndarray | None:
    """Draw query items without replacement: bool [total]; None if all are used.

    The sample depends only on the modality and the numbers, so the directions and models of an evaluation share it.
    """
    if wanted is None or wanted >= total:
        return None
    seed = int.from_bytes(hashlib.sha256(modality.encode()).digest()[:8], "little")
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).choice(total, wanted, replace=False)] = True
    return chosen


def relevant_to(part: RelevantBlock, sampled: np.ndarray | None) -> tuple[np.ndarray, Ragged, np.ndarray]:
    """The sampled queries of a block: (numbers of their items, relevant candidates of each, grades)."""
    if sampled is None:
        return np.arange(part.start, part.stop), part.items, part.grades
    chosen = np.flatnonzero(sampled[part.start : part.stop])
    owner, candidates = part.items.take(chosen)
    grades = Ragged(part.items.start, part.grades).take(chosen)[1]
    return chosen + part.start, Ragged.of_sorted(owner, candidates, len(chosen)), grades


def mean_interval(values: np.ndarray, share: float) -> tuple[float, float] | None:
    """The 95% interval of the mean over all queries, from a random sample of them; None for fewer than two values.

    values: the values of the sampled queries, float [n]
    share: share of all queries that was sampled, 0 to 1; the interval is narrower by sqrt(1 - share)
    """
    if len(values) < 2:
        return None
    bounded = values.min() >= 0 and values.max() <= 1
    with_pseudo = np.concatenate([values, PSEUDO]) if bounded else values
    n = len(with_pseudo)
    half = student.ppf((1 + CONFIDENCE) / 2, n - 1) * with_pseudo.std(ddof=1) / np.sqrt(n) * np.sqrt(1 - share)
    mean, middle = float(values.mean()), float(with_pseudo.mean())
    low, high = min(mean, middle - half), max(mean, middle + half)
    return (max(low, 0.0), min(high, 1.0)) if bounded else (low, high)
