"""Query drift: intervals with the right values, few false alarms without drift, and an alarm with it."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest, ks_2samp

from mmtune.index.monitoring.gate_queries import GateSample, fourier_features, kernel_frequencies
from mmtune.index.monitoring.intervals import share_difference, wilson_interval
from mmtune.index.monitoring.query_drift import bootstrap_distance, query_drift, score_distance
from mmtune.index.monitoring.traffic_counts import TrafficCounts, TrafficKey, score_bin

DIM = 32


def draw(rng: np.random.Generator, count: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Query embeddings around one direction, and best scores that depend on them."""
    vectors = rng.standard_normal((count, DIM)) * 0.15
    vectors[:, 0] += 1
    vectors[:, 1] += shift
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = 0.3 + 0.4 * vectors[:, 2] + rng.normal(0, 0.05, count) - 0.3 * shift
    return vectors.astype(np.float32), scores.astype(np.float32)


def gate_of(rng: np.random.Generator, count: int = 200) -> GateSample:
    vectors, scores = draw(rng, count)
    frequencies = kernel_frequencies(vectors)
    return GateSample(scores, fourier_features(vectors, frequencies), frequencies, "r")


def traffic(rng: np.random.Generator, gate: GateSample, periods: int = 60, shift: float = 0.0, empty: int = 0):
    """Counts of periods of one to about ten queries."""
    out = []
    for n in range(periods):
        vectors, scores = draw(rng, int(rng.poisson(3)) + 1, shift)
        own = TrafficCounts(TrafficKey(300 * n, "v1", "text"), searches=len(scores) + empty, empty=empty)
        own.scores = Counter(score_bin(float(s)) for s in scores)
        summed = TrafficCounts(TrafficKey(300 * n, "v1", "text", gate.id), embedded=len(scores))
        summed.features = gate.features_of(vectors).sum(0)
        out += [own, summed]
    return out


def test_intervals_of_shares_equal_scipy_and_the_published_example():
    for wins, count in ((0, 10), (3, 10), (10, 10), (1, 400)):
        expected = binomtest(wins, count).proportion_ci(0.95, method="wilson")
        assert wilson_interval(wins / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    # Newcombe 1998, table II, case (a): 56/70 - 48/80, method 10
    assert share_difference(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_the_low_edge_is_the_bin_of_the_5_percent_quantile_and_computed_once(monkeypatch):
    gate = GateSample(np.array([np.nan, *np.arange(0.1, 1.1, 0.1)], np.float32), np.zeros((11, 2)), np.zeros((1, 4)), "r")
    calls = []
    quantile = np.quantile
    monkeypatch.setattr(np, "quantile", lambda *a, **k: calls.append(a) or quantile(*a, **k))
    assert [gate.low_edge for _ in range(3)] == [score_bin(0.145)] * 3 and len(calls) == 1
    assert GateSample(np.full(3, np.nan), gate.features, gate.frequencies, "r").low_edge == -100


def test_the_kernel_is_the_gaussian_of_the_median_distance(monkeypatch):
    from mmtune.index.monitoring import gate_queries

    monkeypatch.setattr(gate_queries, "FREQUENCIES", 20_000)
    vectors, _ = draw(np.random.default_rng(0), 40)
    features = fourier_features(vectors, kernel_frequencies(vectors))
    distances = np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(-1))
    width = np.median(distances[np.triu_indices(40, 1)])
    assert np.abs(features @ features.T - np.exp(-((distances / width) ** 2) / 2)).max() < 0.05
    assert np.allclose((features**2).sum(1), 1)


def test_the_distances_are_mmd_and_kolmogorov_smirnov():
    rng = np.random.default_rng(1)
    gate = gate_of(rng)
    counts = traffic(rng, gate, shift=0.2)
    drift = query_drift(counts, gate, "v1", "text")
    summed = [c for c in counts if c.features is not None]
    mean = sum(c.features for c in summed) / sum(c.embedded for c in summed)
    assert drift.embeddings.value == pytest.approx(np.linalg.norm(mean - gate.features.mean(0)))
    binned = [b for c in counts for b, n in c.scores.items() for _ in range(n)]
    expected = ks_2samp(binned, [score_bin(float(s)) for s in gate.scores]).statistic
    assert drift.scores.value == pytest.approx(expected)
    assert drift.scores.low < expected < drift.scores.high


def test_the_bootstrap_covers_a_known_distance():
    """Means of one-dimensional normals that are 1 apart: the 90% interval covers 1 in about 90 of 100 cases."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        groups = [rng.normal(1, 1, (int(rng.integers(1, 6)), 1)) for _ in range(40)]
        sums, sizes = np.array([g.sum(0) for g in groups]), np.array([len(g) for g in groups])
        d = bootstrap_distance(sums, sizes, rng.normal(0, 1, (80, 1)), "euclidean", 0.1, repeats=200)
        covered += d.low <= 1 <= d.high
    assert 80 <= covered <= 98


@pytest.mark.slow
def test_false_alarms_without_drift_are_as_rare_as_stated():
    """200 days from the gate's own distribution, at a level of 5%: between 0.5% and 9.5% alarms (99% range of a binomial: 3 to 19)."""
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gate = gate_of(rng)
        alarms += bool(query_drift(traffic(rng, gate), gate, "v1", "text", level=0.05, least=0.0).differs)
    assert 1 <= alarms <= 19, alarms


def test_no_alarm_without_drift_and_an_alarm_with_it():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        gate = gate_of(rng)
        same = query_drift(traffic(rng, gate), gate, "v1", "text")
        assert same.differs is False and same.embeddings.low == 0 and "are like the gate's" in same.sentence
        other = query_drift(traffic(rng, gate, shift=0.6), gate, "v1", "text")
        assert other.differs and other.embeddings.low > 0.1 and other.scores.low > 0.1
        assert "text queries differ from the gate's: their embeddings differ by MMD 0." in other.sentence
        assert other.low.share > 0.3 and other.low.low > 0.1 and other.low.gate == pytest.approx(0.05, abs=0.03)


def test_empty_answers_are_compared():
    rng = np.random.default_rng(0)
    gate = gate_of(rng)
    drift = query_drift(traffic(rng, gate, empty=1), gate, "v1", "text")
    assert drift.empty.gate == 0 and 0.15 < drift.empty.share < 0.3 and drift.empty.low > 0.1


def test_too_few_queries_decide_nothing():
    rng = np.random.default_rng(0)
    gate = gate_of(rng)
    for periods in (0, 5):
        drift = query_drift(traffic(rng, gate, periods, shift=0.9), gate, "v1", "text")
        assert drift.differs is None and "too few" in drift.sentence
    # other versions, other modalities, and features of another reference are left out
    counts = traffic(rng, gate, 60, shift=0.9)
    assert query_drift(counts, gate, "v2", "text").queries == 0
    assert query_drift(counts, gate, "v1", "image").queries == 0
    stale = GateSample(gate.scores, gate.features, gate.frequencies, "another")
    assert query_drift(counts, stale, "v1", "text").embeddings is None
    assert score_distance(counts, stale, 0.01) is not None
