"""Query drift: do the queries of a period differ from the gate's queries, on which the version was accepted?

Two distances are measured, each with an interval from a bootstrap of the periods (5 minutes of traffic are resampled together, because
a visitor sends several queries) and of the gate's queries:

- embeddings: maximum mean discrepancy (MMD, Gretton et al. 2012) with a Gaussian kernel by random Fourier features; 0 for the same
  distribution, at most about 1;
- scores: Kolmogorov-Smirnov distance of the best scores, in bins of 0.01: the largest difference of the two cumulative distributions.

The interval of a distance |a - b| is [max(0, d - c), d + c], where c is the quantile of |(a* - a) - (b* - b)| over bootstrap samples a*,
b*. By the triangle inequality it covers the true distance at least as often as stated, and it excludes 0 about as rarely as stated if
the distributions are the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmtune.index.collection_results import CollectionResult
from mmtune.index.monitoring.gate_queries import GateQueries, GateSample
from mmtune.index.monitoring.intervals import share_difference
from mmtune.index.monitoring.traffic_counts import SCORE_BINS, TrafficCounts, score_bin, share_below, total

LEVEL = 0.01
"""Probability of a false alarm of one comparison: with one a day, about one in three months."""
MIN_DISTANCE = 0.1
"""Queries differ if the whole interval of a distance is above this: with much traffic, every small difference is significant."""
MIN_PERIODS = 8
"""Fewer periods with queries cannot be resampled."""
MIN_QUERIES = 50
"""Fewer queries are not compared."""
REPEATS = 1000
"""Bootstrap samples."""


@dataclass(frozen=True, eq=False)
class Distance(CollectionResult):
    """A distance of two samples with its confidence interval. low is 0 if the samples may come from the same distribution."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ShareChange(CollectionResult):
    """A share of the traffic, the same share of the gate's queries, and the interval of the difference."""

    share: float
    gate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class QueryDrift(CollectionResult):
    """The comparison of the queries of one modality with the gate's.

    queries, gate_queries: numbers of queries that were compared
    differs: whether an interval lies above the smallest distance of interest; None if there are too few queries
    sentence: the result in words
    embeddings, scores: distances; None if they could not be measured
    empty, low: shares of queries without results, and with a best score below that of 95% of the gate's queries
    level: the interval of each distance has the confidence 1 - level / 2, so that both together have 1 - level
    """

    version: str
    by: str
    queries: int
    gate_queries: int
    differs: bool | None
    sentence: str
    embeddings: Distance | None = None
    scores: Distance | None = None
    empty: ShareChange | None = None
    low: ShareChange | None = None
    level: float = LEVEL


def bootstrap_positions(count: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of `count` observations is drawn in each bootstrap sample, float64 [repeats, count]."""
    return rng.multinomial(count, np.full(count, 1 / count), repeats).astype(np.float64)


def bootstrap_distance(
    sums_BF: np.ndarray,
    counts_B: np.ndarray,
    reference_NF: np.ndarray,
    norm: Literal["euclidean", "largest"],
    level: float,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Distance:
    """Return the distance of the mean of grouped observations from the mean of a reference sample, with its interval.

    sums_BF: sum of the observations of each group [B, F]; groups are resampled as a whole
    counts_B: number of observations of each group [B]
    reference_NF: observations of the reference [N, F], resampled one by one
    """
    rng = np.random.default_rng(seed)
    size = (lambda x: np.sqrt((x**2).sum(-1))) if norm == "euclidean" else (lambda x: np.abs(x).max(-1))
    mean_F, reference_F = sums_BF.sum(0) / counts_B.sum(), reference_NF.mean(0)
    groups, rows = len(sums_BF), len(reference_NF)
    groups_RB, rows_RN = bootstrap_positions(groups, repeats, rng), bootstrap_positions(rows, repeats, rng)
    means_RF = (groups_RB @ sums_BF) / (groups_RB @ counts_B)[:, None]
    references_RF = rows_RN @ reference_NF / rows
    # a bootstrap sample varies by (n - 1) / n less than the mean of n groups does
    spread_RF = (means_RF - mean_F) * math.sqrt(groups / (groups - 1)) - (references_RF - reference_F) * math.sqrt(
        rows / (rows - 1)
    )
    distance, radius = float(size(mean_F - reference_F)), float(np.quantile(size(spread_RF), 1 - level))
    return Distance(distance, max(0.0, distance - radius), distance + radius)


def embedding_distance(counts: Sequence[TrafficCounts], gate: GateSample, level: float) -> Distance | None:
    """Return the MMD of the queries' embeddings from the gate's; None for too few queries."""
    summed = [c for c in counts if c.features is not None and c.key.reference == gate.id]
    if len(summed) < MIN_PERIODS or sum(c.embedded for c in summed) < MIN_QUERIES:
        return None
    sums_BF = np.array([c.features for c in summed])
    return bootstrap_distance(sums_BF, np.array([c.embedded for c in summed]), gate.features, "euclidean", level)


def score_distance(counts: Sequence[TrafficCounts], gate: GateSample, level: float) -> Distance | None:
    """Return the Kolmogorov-Smirnov distance of the best scores from the gate's; None for too few queries."""
    scored = [c for c in counts if c.scores]
    if len(scored) < MIN_PERIODS or sum(sum(c.scores.values()) for c in scored) < MIN_QUERIES:
        return None
    edges = np.arange(-SCORE_BINS, SCORE_BINS)
    below_BE = np.zeros((len(scored), len(edges)))
    for row, c in zip(below_BE, scored, strict=True):
        for b, n in c.scores.items():
            row[b + SCORE_BINS] += n
    bins = np.array([score_bin(float(s)) for s in gate.scores[~np.isnan(gate.scores)]])
    if len(bins) < 2:
        return None
    totals_B = below_BE.sum(1)
    reference_NE = (bins[:, None] <= edges).astype(np.float64)
    return bootstrap_distance(np.cumsum(below_BE, 1), totals_B, reference_NE, "largest", level)


def query_drift(
    counts: Sequence[TrafficCounts], gate: GateSample, version: str, by: str, level: float = LEVEL, least: float = MIN_DISTANCE
) -> QueryDrift:
    """Compare the queries of one version and modality with the gate's queries.

    counts: the periods of the traffic (`TrafficHistory.read`); those of other versions and modalities are left out
    level: probability of a false alarm if the distributions are the same
    least: distance that the lower bound of an interval must pass
    """
    own = [c for c in counts if c.key.version == version and c.key.by == by]
    traffic, rows = total(own), len(gate.scores)
    embeddings, scores = embedding_distance(own, gate, level / 2), score_distance(own, gate, level / 2)
    empty: ShareChange | None = None
    low: ShareChange | None = None
    if traffic.searches:
        gate_empty = float(np.isnan(gate.scores).mean())
        share = traffic.empty / traffic.searches
        empty = ShareChange(share, gate_empty, *share_difference(share, traffic.searches, gate_empty, rows, level))
    known = gate.scores[~np.isnan(gate.scores)]
    if (scored := sum(traffic.scores.values())) and len(known):
        share = share_below(traffic.scores, gate.low_edge)
        gate_low = float(np.mean([score_bin(float(s)) < gate.low_edge for s in known]))
        low = ShareChange(share, gate_low, *share_difference(share, scored, gate_low, len(known), level))
    measured = [d for d in (embeddings, scores) if d is not None]
    differs = any(d.low > least for d in measured) if measured else None
    sentence = _sentence(by, traffic.searches, embeddings, scores, differs, least, level)
    return QueryDrift(version, by, traffic.searches, rows, differs, sentence, embeddings, scores, empty, low, level)


def gate_drift(counts: Sequence[TrafficCounts], gate: GateQueries | None, version: str) -> list[QueryDrift]:
    """Compare the queries of a version with the gate's, for each modality that has a reference."""
    return [query_drift(counts, sample, version, m) for m, sample in gate.samples.items()] if gate else []


def _sentence(
    by: str,
    searches: int,
    embeddings: Distance | None,
    scores: Distance | None,
    differs: bool | None,
    least: float,
    level: float,
) -> str:
    if differs is None:
        return f"{searches} {by} queries: too few to compare with the gate's"
    parts = []
    for name, d in (("embeddings differ by MMD", embeddings), ("best scores differ by KS distance", scores)):
        if d is not None and (d.low > least or not differs):
            parts.append(f"{name} {d.value:.2f} ({1 - level / 2:.1%} interval {d.low:.2f} to {d.high:.2f})".replace(".0%", "%"))
    verb = "differ from the gate's" if differs else "are like the gate's"
    return f"{by} queries {verb}: their {' and their '.join(parts)}; 0 means the same, over {least:g} counts as different"
