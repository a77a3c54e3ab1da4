"""Bootstrap confidence intervals of paired differences, resampled by cluster: two photos of one product are not independent.

Two intervals are computed, and the wider bound is taken at each end:
    the percentile interval with tails widened for few clusters (Hesterberg 2015, "expanded percentile", arXiv 1411.5279,
    section
        4.3), which is too short if the differences are skewed
    the studentised interval (bootstrap t, Efron and Tibshirani 1993, section 12.5), which adapts to skewness, but is unstable
    if
        the differences take few distinct values

docs/benchmarks.md has coverage tables. scipy.stats.bootstrap is not used because it resamples single observations. Here whole
clusters are drawn, the same ones in every direction.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.evaluation.seed_statistics import t_quantile

MIN_CLUSTERS = 5
"""With fewer clusters no method is reliable, so the interval is [-1, 1], the range of differences of a metric in [0, 1]."""
STUDENTISE_UP_TO = 500
"""Maximum number of clusters for the studentised interval. With more, both intervals agree, and it takes much longer."""
ERROR_FLOOR = 1 / 3
"""Lower limit of a resample's standard error, as a share of the sample's; a resample of equal values would have error 0."""


def bootstrap_intervals(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence bounds (lower [M], upper [M]) for the mean of the parts' means.

    The bounds do not exceed 1, the largest difference of most metrics, or the largest value where that is more.

    parts: (values [Q, M], clusters [Q]) of each part, e.g. the differences of M metrics for the queries of one direction
    level: confidence level
    resamples: number of resamples; each draws whole clusters with replacement, the same ones in all parts
    """
    from scipy.special import ndtr

    sums = _cluster_sums(parts)
    count, metrics = sums.residual[0].shape
    if count < MIN_CLUSTERS:
        return np.full(metrics, -1.0), np.full(metrics, 1.0)
    errors = count <= STUDENTISE_UP_TO
    blocks = [_statistics(sums, weight, errors) for weight in _resample_weights(count, resamples, seed)]
    shift, error = (np.concatenate([block[i] for block in blocks]) for i in (0, 1))
    complete = np.isfinite(shift).all(1)  # drop resamples in which a part has no query
    shift, error = shift[complete], error[complete]
    tail = float(ndtr(-math.sqrt(count / (count - 1)) * t_quantile(0.5 + level / 2, count - 1)))
    low, high = np.quantile(shift, [tail, 1 - tail], axis=0)
    if errors:
        own = _statistics(sums, np.ones((1, count)), errors)[1][0]
        ratio = shift / np.maximum(error, ERROR_FLOOR * np.where(own > 0, own, 1.0))
        t_low, t_high = np.quantile(ratio, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        low, high = np.minimum(low, -t_high * own), np.maximum(high, -t_low * own)
    farthest = np.maximum(1.0, np.max([np.abs(values).max(0) for values, _ in parts], axis=0))
    return np.maximum(sums.mean + low, -farthest), np.minimum(sums.mean + high, farthest)


@dataclass(frozen=True)
class _ClusterSums:
    """Sums of the values by cluster.

    residual: for each part [C, M], each cluster's sum of values minus its size times the part's mean
    size: for each part [C], number of values in each cluster
    mean: [M], the estimate, which is the mean of the parts' means
    """

    residual: list[np.ndarray]
    size: list[np.ndarray]
    mean: np.ndarray


def _cluster_sums(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> _ClusterSums:
    names, numbers = np.unique(np.concatenate([c for _, c in parts]), return_inverse=True)
    residuals, sizes, means, start = [], [], [], 0
    for values, clusters in parts:
        at = numbers[start : start + len(clusters)]
        start += len(clusters)
        total = np.stack([np.bincount(at, values[:, m], len(names)) for m in range(values.shape[1])], axis=1)
        size = np.bincount(at, minlength=len(names)).astype(np.float64)
        mean = values.mean(0)
        residuals.append(total - size[:, None] * mean)
        sizes.append(size)
        means.append(mean)
    return _ClusterSums(residuals, sizes, np.mean(means, axis=0))


def _resample_weights(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks [r, C] of the number of times each resample drew each cluster."""
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // count)
    for begin in range(0, resamples, step):
        n = min(step, resamples - begin)
        drawn = rng.integers(0, count, (n, count)) + np.arange(n)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=n * count).reshape(n, count).astype(np.float64)


def _statistics(sums: _ClusterSums, weight: np.ndarray, errors: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (shift [r, M], standard error [r, M]) of each resample; the errors are zeros if not `errors`.

    The shift is the resample's estimate minus the sample's. The standard error is that of the linearised mean of ratios,
    sqrt(sum(I_c^2) / (C (C - 1))), with the influence values of the clusters
    I_c = C * mean over parts of (residual_c - shift * size_c) / total size.
    """
    count, parts = weight.shape[1], range(len(sums.residual))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = [weight @ size for size in sums.size]
        shift = [(weight @ residual) / t[:, None] for residual, t in zip(sums.residual, total, strict=True)]
        mean_shift = np.mean(shift, axis=0)
        if not errors:
            return mean_shift, np.zeros_like(mean_shift)
        squares = np.zeros_like(mean_shift)
        for d in parts:
            for e in parts:
                product = weight @ (sums.residual[d] * sums.residual[e])
                product -= shift[d] * (weight @ (sums.size[d][:, None] * sums.residual[e]))
                product -= shift[e] * (weight @ (sums.residual[d] * sums.size[e][:, None]))
                product += shift[d] * shift[e] * (weight @ (sums.size[d] * sums.size[e]))[:, None]
                squares += product / (total[d] * total[e])[:, None]
    squares *= count / ((count - 1) * len(sums.residual) ** 2)
    return mean_shift, np.sqrt(squares.clip(0))
