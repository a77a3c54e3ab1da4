"""How often the 95% interval misses the true difference, by number of clusters and kind of differences.

The table in docs/benchmarks.md: pytest tests/comparison/test_bootstrap_coverage.py -m slow -s
"""

import math

import numpy as np
import pytest

from mmtune.comparison.bootstrap_intervals import _cluster_sums, _statistics, bootstrap_intervals

CLUSTERS = (5, 8, 12, 20, 40, 80)
KINDS = {
    "normal": lambda rng, n: 0.1 * rng.standard_normal(n),
    "exponential": lambda rng, n: 0.1 * (rng.exponential(1, n) - 1),
    "lognormal": lambda rng, n: 0.05 * (np.exp(rng.standard_normal(n)) - math.exp(0.5)),
    "few values": lambda rng, n: rng.choice([0.0, 0.0, 0.0, 0.0, 0.3, -0.3], n),
    "rare losses": lambda rng, n: np.where(rng.random(n) < 0.1, -0.45, 0.05),
}
"""Differences of clusters whose true mean is 0. Rare losses: one cluster in ten loses nine times what each other one gains."""


def missed(kind, clusters, runs, resamples=400):
    """Share of runs whose interval does not hold 0, and the mean width of the intervals."""
    misses, width = 0, 0.0
    rng = np.random.default_rng(clusters)
    for run in range(runs):
        values = KINDS[kind](rng, clusters)
        low, high = bootstrap_intervals([(values[:, None], np.arange(clusters))], resamples=resamples, seed=run)
        misses += not low[0] <= 0 <= high[0]
        width += high[0] - low[0]
    return misses / runs, width / runs


@pytest.mark.parametrize(
    ("kind", "clusters", "most"),
    [
        ("normal", 5, 0.11),
        ("exponential", 5, 0.16),
        ("exponential", 12, 0.12),
        ("lognormal", 5, 0.18),
        ("lognormal", 20, 0.13),
        ("few values", 12, 0.10),
    ],
)
def test_few_clusters_of_skewed_differences(kind, clusters, most):
    """300 runs; the bound is the share of the table below plus three standard errors."""
    assert missed(kind, clusters, 300)[0] <= most


@pytest.mark.slow
def test_coverage_table():
    print("\nmisses (width) by clusters:", *CLUSTERS)
    for kind in KINDS:
        row = [missed(kind, n, 2000) for n in CLUSTERS]
        print(f"| {kind} |", " | ".join(f"{m:.1%} ({w:.2f})" for m, w in row), "|")
        if kind != "rare losses":  # what no cluster has shown, no interval can hold
            assert all(m <= 0.16 for m, _ in row) and row[-1][0] <= 0.09
    assert missed("rare losses", 80, 2000)[0] <= 0.07


def test_standard_errors_equal_plain_loops():
    """Of a mean of two parts' means, with clusters of several sizes, in resamples and in the sample itself."""
    rng = np.random.default_rng(3)
    parts = []
    for queries in (60, 45):
        clusters = np.concatenate([np.arange(12), rng.integers(0, 12, queries - 12)])
        parts.append((rng.standard_normal((queries, 2)) + clusters[:, None], clusters))
    weight = np.stack([np.ones(12), *(np.bincount(rng.integers(0, 12, 12), minlength=12) for _ in range(5))]).astype(float)
    shift, error = _statistics(_cluster_sums(parts), weight, True)
    for r, w in enumerate(weight):
        estimates, influence = [], np.zeros((12, 2))
        for values, clusters in parts:
            total = sum(w[c] for c in clusters)
            estimate = sum(w[c] * v for v, c in zip(values, clusters, strict=True)) / total
            for v, c in zip(values, clusters, strict=True):
                influence[c] += 12 / 2 * (v - estimate) / total
            estimates.append(estimate)
        own = np.mean([values.mean(0) for values, _ in parts], axis=0)
        assert shift[r] == pytest.approx(np.mean(estimates, axis=0) - own, abs=1e-9)
        assert error[r] == pytest.approx(np.sqrt((w[:, None] * influence**2).sum(0) / (12 * 11)), rel=1e-9)


def test_differences_without_variance_give_a_point():
    low, high = bootstrap_intervals([(np.full((20, 1), 0.25), np.arange(20))])
    assert low[0] == pytest.approx(0.25) and high[0] == pytest.approx(0.25)
    assert [b[0] for b in bootstrap_intervals([(np.zeros((20, 1)), np.arange(20))])] == [0.0, 0.0]
