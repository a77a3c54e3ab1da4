"""The paired difference of a metric between two models on the same queries, with its bootstrap interval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS, bootstrap_intervals
from mmtune.contracts import JsonObject
from mmtune.evaluation.seed_statistics import Spread, spread_of

if TYPE_CHECKING:
    from mmtune.evaluation.result import Direction

ROUNDING = 1e-12  # smaller differences are neither wins nor losses: the order of a sum changes the last bits of a float


@dataclass(frozen=True)
class PairedDifference:
    """The difference candidate - base of one metric, paired by query.

    base, candidate: mean of the metric over the queries
    interval: confidence interval of the difference (95 % by default), resampled by cluster
    wins, losses: number of queries on which the candidate is better, or worse
    """

    base: float
    candidate: float
    difference: float
    interval: tuple[float, float]
    wins: int
    losses: int
    queries: int
    clusters: int

    def to_dict(self) -> JsonObject:
        return {**asdict(self), "interval": list(self.interval), "has_interval": self.has_interval}

    @property
    def has_interval(self) -> bool:
        """Whether there are enough clusters for an interval; otherwise `interval` holds every value."""
        return self.clusters >= MIN_CLUSTERS

    def bounds(self, spec: str = "+.4f") -> str:
        """The interval in brackets, each end by the format `spec`, or that there is none."""
        if not self.has_interval:
            return f"[{self.clusters} clusters: no interval]"
        return f"[{self.interval[0]:{spec}}, {self.interval[1]:{spec}}]"

    def __str__(self) -> str:
        return f"{self.difference:+.4f} {self.bounds()}"


@dataclass(frozen=True)
class SeedsDifference(PairedDifference):
    """A difference as the mean over seeds. `interval` is the wider of both intervals at each end; wins and losses are means over seeds.

    queries_interval: how much it depends on the queries: mean of the intervals of the single seeds
    seeds: how much it depends on the seed: mean, sd and t-interval of the difference, and that of each seed
    """

    queries_interval: tuple[float, float] = (-1.0, 1.0)
    seeds: Spread | None = None

    def to_dict(self) -> JsonObject:
        return {**super().to_dict(), "queries_interval": list(self.queries_interval)}


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed: confidence level, number of resamples, random seed."""

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0


class DirectionPair(NamedTuple):
    """One direction evaluated with both models. mask: bool [queries], the queries to use; None: all of them."""

    base: "Direction"
    candidate: "Direction"
    mask: np.ndarray | None = None


def paired_differences(
    pairs: Sequence[DirectionPair], metrics: Sequence[str], bootstrap: Bootstrap | None = None
) -> dict[str, PairedDifference]:
    """Compute the paired difference of each metric. Over several directions it is the mean of the directions' means."""
    bootstrap = bootstrap or Bootstrap()
    deltas: list[tuple[np.ndarray, np.ndarray]] = []
    values: list[tuple[np.ndarray, np.ndarray]] = []
    for base, candidate, mask in pairs:
        keep = np.ones(base.queries, bool) if mask is None else mask
        base_QM, candidate_QM = _values(base, metrics)[keep], _values(candidate, metrics)[keep]
        assert base.clusters is not None
        values.append((base_QM, candidate_QM))
        deltas.append((candidate_QM - base_QM, base.clusters[keep]))
    low, high = bootstrap_intervals(deltas, bootstrap.level, bootstrap.resamples, bootstrap.seed)
    clusters = len(np.unique(np.concatenate([c for _, c in deltas])))
    out = {}
    for m, name in enumerate(metrics):
        base_mean, candidate_mean = (float(np.mean([v[side][:, m].mean() for v in values])) for side in (0, 1))
        every = np.concatenate([d[:, m] for d, _ in deltas])
        out[name] = PairedDifference(
            base=base_mean,
            candidate=candidate_mean,
            difference=float(np.mean([d[:, m].mean() for d, _ in deltas])),
            interval=(float(low[m]), float(high[m])),
            wins=int((every > ROUNDING).sum()),
            losses=int((every < -ROUNDING).sum()),
            queries=len(every),
            clusters=clusters,
        )
    return out


def _values(direction: "Direction", metrics: Sequence[str]) -> np.ndarray:
    """Return the value of every query, [Q, M], for `metrics`."""
    assert direction.values is not None, "a comparison needs the values of every query: evaluate with per_query=True"
    return np.stack([direction.values[m] for m in metrics], axis=1)


def mean_difference(differences: Sequence[PairedDifference]) -> SeedsDifference:
    """Combine the differences of several seeds on the same queries."""
    count = len(differences)
    spread = spread_of([d.difference for d in differences])
    low, high = (sum(d.interval[end] for d in differences) / count for end in (0, 1))
    seeds_low, seeds_high = spread["low"], spread["high"]
    return SeedsDifference(
        base=sum(d.base for d in differences) / count,
        candidate=sum(d.candidate for d in differences) / count,
        difference=spread["mean"],
        interval=(low if seeds_low is None else min(low, seeds_low), high if seeds_high is None else max(high, seeds_high)),
        wins=round(sum(d.wins for d in differences) / count),
        losses=round(sum(d.losses for d in differences) / count),
        queries=differences[0].queries,
        clusters=differences[0].clusters,
        queries_interval=(low, high),
        seeds=spread,
    )
