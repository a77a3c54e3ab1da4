"""Bootstrap intervals of paired differences, resampled by cluster: two photos of one product are not two pieces of evidence.

scipy.stats.bootstrap resamples single observations; here whole clusters are drawn, the same ones in every direction.
"""

import math
from collections.abc import Sequence

import numpy as np

MIN_CLUSTERS = 5
"""With fewer clusters the interval is [-1, 1], all that a metric in [0, 1] can differ: no method is reliable there."""


def bootstrap_intervals(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (lower [M], upper [M]) at confidence `level` of the mean over `parts` of each part's mean.

    A part is (values [Q, M], clusters [Q]), e.g. the differences of M metrics for the queries of one direction. Every resample
    draws whole clusters with replacement, the same in all parts. Percentile interval with the tails widened for few clusters
    (Hesterberg 2015, "expanded percentile", arXiv 1411.5279, section 4.3): a plain one is as narrow as a z interval with a
    variance over n instead of n - 1.
    """
    from scipy.special import ndtr

    names, numbers = np.unique(np.concatenate([c for _, c in parts]), return_inverse=True)
    metrics, count = parts[0][0].shape[1], len(names)
    if count < MIN_CLUSTERS:
        return np.full(metrics, -1.0), np.full(metrics, 1.0)
    sums, sizes, start = [], [], 0
    for values, clusters in parts:
        at = numbers[start : start + len(clusters)]
        start += len(clusters)
        sums.append(np.stack([np.bincount(at, values[:, m], count) for m in range(metrics)], axis=1))
        sizes.append(np.bincount(at, minlength=count).astype(np.float64))
    means = _resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
    tail = float(ndtr(-math.sqrt(count / (count - 1)) * t_quantile(0.5 + level / 2, count - 1)))
    return np.quantile(means, tail, axis=0), np.quantile(means, 1 - tail, axis=0)


def _resampled_means(
    sums: Sequence[np.ndarray], sizes: Sequence[np.ndarray], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """[R, M] the statistic of each resample, from each part's sums [C, M] and sizes [C] by cluster. Resamples in which some
    part has no query are left out."""
    count = len(sizes[0])
    blocks = []
    step = max(1, 2_000_000 // count)
    for begin in range(0, resamples, step):
        n = min(step, resamples - begin)
        drawn = rng.integers(0, count, (n, count)) + np.arange(n)[:, None] * count
        weight = np.bincount(drawn.ravel(), minlength=n * count).reshape(n, count).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            of_parts = [(weight @ s) / (weight @ z)[:, None] for s, z in zip(sums, sizes, strict=True)]
        blocks.append(np.mean(of_parts, axis=0))
    means = np.concatenate(blocks)
    return means[np.isfinite(means).all(1)]


def t_quantile(p: float, freedom: int) -> float:
    """The quantile `p` of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, p))
