"""Intervals for paired differences, resampled by cluster: two photos of one product are not two pieces of evidence."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

MIN_CLUSTERS = 5  # below this no interval is worth its name: [-1, 1], all that a metric in [0, 1] can differ


def bootstrap_intervals(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (lower [M], upper [M]) of the mean over `parts` of each part's mean.

    A part is (values [Q, M], clusters [Q]). Every resample draws whole clusters with replacement, the same in all parts
    (paired). Percentile interval with the tails widened for few clusters (Hesterberg 2015, "expanded percentile",
    arXiv 1411.5279, 4.3): a plain one is as narrow as a z interval with a variance over n.
    """
    everyone, numbers = np.unique(np.concatenate([c for _, c in parts]), return_inverse=True)
    width = parts[0][0].shape[1]
    count = len(everyone)
    if count < MIN_CLUSTERS:
        return np.full(width, -1.0), np.full(width, 1.0)
    sums, sizes, start = [], [], 0
    for values, clusters in parts:
        at = numbers[start : start + len(clusters)]
        start += len(clusters)
        sums.append(np.stack([np.bincount(at, values[:, m], count) for m in range(width)], axis=1))
        sizes.append(np.bincount(at, minlength=count).astype(np.float64))
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, 2_000_000 // count)
    for begin in range(0, resamples, step):
        n = min(step, resamples - begin)
        drawn = rng.integers(0, count, (n, count)) + np.arange(n)[:, None] * count
        weight = np.bincount(drawn.ravel(), minlength=n * count).reshape(n, count).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(np.mean([(weight @ s) / (weight @ z)[:, None] for s, z in zip(sums, sizes, strict=True)], axis=0))
    every = np.concatenate(means)
    every = every[np.isfinite(every).all(1)]  # a part without any query in a resample says nothing
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * t_quantile(0.5 + level / 2, count - 1))
    return np.quantile(every, tail, axis=0), np.quantile(every, 1 - tail, axis=0)


def t_quantile(p: float, freedom: int) -> float:
    """Student's t quantile for p > 0.5, to 1e-6: Simpson's rule over the density, then bisection."""
    log_c = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)

    def cdf(t: float) -> float:
        x = np.linspace(0, t, 2001)
        y = np.exp(log_c - (freedom + 1) / 2 * np.log1p(x * x / freedom))
        return 0.5 + float(t / 6000 * (y[0] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum() + y[-1]))

    lo, hi = 0.0, 40.0
    for _ in range(60):
        mid = (lo + hi) / 2
        lo, hi = (mid, hi) if cdf(mid) < p else (lo, mid)
    return (lo + hi) / 2
