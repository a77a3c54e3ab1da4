"""Counts of searches in one period of time. Counts of several processes and periods are merged by addition."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from mmtune.contracts import JsonObject

SCORE_BINS = 100
"""Bins of the score histogram per unit of cosine similarity: bin b holds the scores from b / 100 to (b + 1) / 100."""
LATENCY_GROWTH = 1.05
"""Bin b of the latency histogram holds LATENCY_GROWTH**b to LATENCY_GROWTH**(b + 1) milliseconds, so a quantile is off by at most
2.5%."""
FEATURE_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class TrafficKey:
    """What one count is about.

    start: beginning of the period, Unix time in seconds
    version: version that was searched; "" for requests that no version answered
    by: modality of the queries, "item" for searches by an item, "" for requests that failed
    reference: id of the gate's queries whose kernel made `features` (see `gate_queries`); "" without features
    """

    start: int
    version: str
    by: str
    reference: str = ""


@dataclass
class TrafficCounts:
    """Counts of the searches of one period.

    searches: answered searches; empty: those without results
    errors, refused: requests that got a status of 500 or more, and of 400 to 499
    scores: histogram of the cosine similarity of the first result: {bin: searches}
    latency: histogram of the duration: {bin: searches}
    embedded: number of queries in `features`
    features: sum of the queries' random Fourier features [F]; None if there are none
    """

    key: TrafficKey
    searches: int = 0
    empty: int = 0
    errors: int = 0
    refused: int = 0
    scores: Counter[int] = field(default_factory=Counter)
    latency: Counter[int] = field(default_factory=Counter)
    embedded: int = 0
    features: np.ndarray | None = None

    def add(self, other: "TrafficCounts") -> None:
        """Add the counts of another process or period."""
        for name in ("searches", "empty", "errors", "refused", "embedded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.scores.update(other.scores)
        self.latency.update(other.latency)
        if other.features is not None:
            self.features = other.features.copy() if self.features is None else self.features + other.features

    def to_line(self) -> JsonObject:
        """Return the counts as a line of the history; zeros are left out."""
        key = self.key
        line: JsonObject = {"at": iso(key.start), "version": key.version, "by": key.by}
        for name in ("searches", "empty", "errors", "refused"):
            line |= {name: value} if (value := getattr(self, name)) else {}
        for name, histogram in (("scores", self.scores), ("ms", self.latency)):
            line |= {name: {str(b): n for b, n in sorted(histogram.items())}} if histogram else {}
        if self.features is not None:
            sums = [round(float(x), FEATURE_DECIMALS) for x in self.features]
            line |= {"reference": key.reference, "embedded": self.embedded, "features": sums}
        return line

    @classmethod
    def from_line(cls, line: Mapping[str, object]) -> "TrafficCounts":
        """Read a line that `to_line` made. Raises ValueError, KeyError or TypeError for another one."""
        start = round(datetime.fromisoformat(str(line["at"])).timestamp())
        key = TrafficKey(start, str(line["version"]), str(line["by"]), str(line.get("reference", "")))
        numbers = {name: _number(line.get(name, 0)) for name in ("searches", "empty", "errors", "refused", "embedded")}
        histograms = [_histogram(line.get(name, {})) for name in ("scores", "ms")]
        sums = line.get("features")
        features = None if sums is None else np.array(sums, np.float64)
        return cls(key, **numbers, scores=histograms[0], latency=histograms[1], features=features)


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a count")
    return value


def _histogram(value: object) -> Counter[int]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not a histogram")
    return Counter({int(b): _number(n) for b, n in value.items()})


def iso(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def score_bin(score: float) -> int:
    """Return the histogram bin of a cosine similarity."""
    return max(-SCORE_BINS, min(SCORE_BINS - 1, math.floor(score * SCORE_BINS + 1e-6)))


def latency_bin(seconds: float) -> int:
    """Return the histogram bin of a duration; everything under 0.1 ms counts as 0.1 ms."""
    return math.floor(math.log(max(0.1, 1000 * seconds)) / math.log(LATENCY_GROWTH))


def latency_quantile(latency: Mapping[int, int], q: float) -> float | None:
    """Return a quantile of the durations in milliseconds; None without any."""
    total, seen = sum(latency.values()), 0
    for b in sorted(latency):
        seen += latency[b]
        if seen >= q * total and seen:
            return LATENCY_GROWTH ** (b + 0.5)
    return None


def share_below(scores: Mapping[int, int], edge: int) -> float:
    """Return the share of scores in bins below `edge`; 0 without scores."""
    total = sum(scores.values())
    return sum(n for b, n in scores.items() if b < edge) / total if total else 0.0


def merge(counts: Iterable[TrafficCounts], seconds: int = 1) -> list[TrafficCounts]:
    """Add up the counts of each (period of `seconds`, version, kind of query, reference), in the order of their times."""
    merged: dict[TrafficKey, TrafficCounts] = {}
    for one in counts:
        k = one.key
        key = TrafficKey(k.start - k.start % seconds, k.version, k.by, k.reference)
        merged.setdefault(key, TrafficCounts(key)).add(one)
    return sorted(merged.values(), key=lambda c: (c.key.start, c.key.version, c.key.by, c.key.reference))


def total(counts: Iterable[TrafficCounts]) -> TrafficCounts:
    """Add up all counts, without their features."""
    out = TrafficCounts(TrafficKey(0, "", ""))
    for one in counts:
        for name in ("searches", "empty", "errors", "refused"):
            setattr(out, name, getattr(out, name) + getattr(one, name))
        out.scores.update(one.scores)
        out.latency.update(one.latency)
    return out
