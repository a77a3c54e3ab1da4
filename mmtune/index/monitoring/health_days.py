"""What the history says about each day: the rows and curves of the health page."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.index.collection_results import CollectionResult
from mmtune.index.monitoring.gate_queries import GateQueries
from mmtune.index.monitoring.query_drift import Distance, bootstrap_positions
from mmtune.index.monitoring.traffic_counts import LATENCY_GROWTH, TrafficCounts, iso, latency_quantile, total
from mmtune.index.monitoring.traffic_history import DAY

MIN_PERIODS = 8
"""Fewer periods with searches cannot be resampled."""


@dataclass(frozen=True, eq=False)
class HealthDay(CollectionResult):
    """One day in UTC. A value is None if it was not measured.

    searches: answered searches; versions: {version: its searches}
    empty, low, errors: shares of searches without results, of searches with a low best score, and of requests with status 5xx
    p50_ms, p95_ms: duration of searches
    recall: lowest recall of an index in the last probe of the day; 0 for a probe that failed
    drift: largest distance of the queries' embeddings from the gate's in the last probe of the day (MMD)
    """

    day: str
    searches: int
    versions: Mapping[str, int]
    empty: float | None
    low: float | None
    errors: float | None
    p50_ms: float | None
    p95_ms: float | None
    recall: float | None
    drift: float | None


def low_scores(counts: Sequence[TrafficCounts], version: str, gate: GateQueries | None) -> tuple[int, int]:
    """Return (searches of a version with a low best score, searches with a score), over the modalities that have gate's queries."""
    low = scored = 0
    for one in counts:
        sample = gate.samples.get(one.key.by) if gate is not None and one.key.version == version else None
        if sample is not None:
            scored += sum(one.scores.values())
            low += sum(n for b, n in one.scores.items() if b < sample.low_edge)
    return low, scored


def health_days(
    counts: Sequence[TrafficCounts], probes: Sequence[JsonObject], version: str, gate: GateQueries | None, now: float, days: int
) -> list[HealthDay]:
    """Return the last `days` days, oldest first, today last.

    counts: the history of these days; probes: lines of the log of probes
    version, gate: the live version and its reference, by which scores count as low
    """
    by_day: dict[str, list[TrafficCounts]] = defaultdict(list)
    for one in counts:
        by_day[iso(one.key.start)[:10]].append(one)
    probe_of = {_day(p["at"]): p for p in probes}  # the last of each day
    return [
        _day_of(name, by_day.get(name, []), probe_of.get(name), version, gate)
        for name in (iso(now - n * DAY)[:10] for n in reversed(range(days)))
    ]


def _day(at: str) -> str:
    return iso(datetime.fromisoformat(at).timestamp())[:10]


def _day_of(
    day: str, counts: Sequence[TrafficCounts], probe: JsonObject | None, version: str, gate: GateQueries | None
) -> HealthDay:
    sums, versions = total(counts), Counter[str]()
    for one in counts:
        versions[one.key.version] += one.searches
    low, scored = low_scores(counts, version, gate)
    recall: float | None = None
    drift: float | None = None
    if probe is not None:
        recall = 0.0 if probe["fault"] else min((i["recall"] for i in probe["indexes"].values()), default=None)
        drift = max((d["embeddings"]["value"] for d in probe["drift"] if d["embeddings"]), default=None)
    requests = sums.searches + sums.errors
    return HealthDay(
        day=day,
        searches=sums.searches,
        versions={v: n for v, n in sorted(versions.items()) if n},
        empty=sums.empty / sums.searches if sums.searches else None,
        low=low / scored if scored else None,
        errors=sums.errors / requests if requests else None,
        p50_ms=latency_quantile(sums.latency, 0.5),
        p95_ms=latency_quantile(sums.latency, 0.95),
        recall=recall,
        drift=drift,
    )


def latency_ratio(
    counts: Sequence[TrafficCounts], before: Sequence[TrafficCounts], q: float, level: float, repeats: int = 400
) -> Distance | None:
    """Return the ratio of a quantile of the durations to that of an earlier time, with a bootstrap interval over periods.

    None if one of both has fewer than MIN_PERIODS periods.
    """
    sides = [[c for c in side if c.latency] for side in (counts, before)]
    if min(map(len, sides)) < MIN_PERIODS:
        return None
    bins = sorted({b for side in sides for c in side for b in c.latency})
    quantiles, observed = list[np.ndarray](), list[int]()
    for n, side in enumerate(sides):
        histogram_BK = np.array([[c.latency.get(b, 0) for b in bins] for c in side], np.float64)
        weights_RB = bootstrap_positions(len(side), repeats, np.random.default_rng(n))
        cumulative_RK = np.cumsum(weights_RB @ histogram_BK, axis=1)
        quantiles.append(np.argmax(cumulative_RK >= q * cumulative_RK[:, -1:], axis=1))
        whole_K = np.cumsum(histogram_BK.sum(0))
        observed.append(bins[int(np.argmax(whole_K >= q * whole_K[-1]))])
    logs = np.array(bins)[quantiles[0]] - np.array(bins)[quantiles[1]]
    low, high = np.quantile(logs, [level / 2, 1 - level / 2])
    return Distance(*(float(LATENCY_GROWTH**x) for x in (observed[0] - observed[1], low, high)))
