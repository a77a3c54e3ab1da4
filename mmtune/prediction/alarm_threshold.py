"""The threshold of an anomaly score that gives a wanted false-alarm rate, from the scores of normal items.

A threshold is the k-th largest of n scores of normal items. A new normal item that is drawn like them has a larger score with the
probability k / (n + 1); over draws of the n items, this probability has the distribution Beta(k, n + 1 - k) (Vovk 2012,
arXiv 1209.2673: split conformal prediction). So the rate that is stated already has the uncertainty of few normal items.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.seed_statistics import share_interval

AUTO = "auto"
AUTO_RATE = 0.01
"""The false-alarm rate of "auto", if there are enough normal items; with fewer, the lowest rate that they can estimate."""
LEVEL = 0.95


@dataclass(frozen=True)
class AlarmThreshold:
    """A threshold; scores above it are alarms.

    value: the threshold
    false_alarm_rate: expected share of new normal items with a score above it
    interval: 95% interval of this rate
    normal: number of normal items whose scores it comes from
    clusters: number of recordings (or other sources) that they come from; the interval counts each once
    detection_rate: share of the known anomalous items above it; None without such items
    anomalous: number of these items
    detection_interval: 95% interval of the detection rate (Clopper and Pearson 1934); the recordings of the items count once each
    domains: {domain: share of its normal items above the threshold}; {} without domains
    """

    value: float
    false_alarm_rate: float
    interval: tuple[float, float]
    normal: int
    clusters: int
    detection_rate: float | None = None
    anomalous: int = 0
    domains: dict[str, float] = field(default_factory=dict)
    detection_interval: tuple[float, float] | None = None

    def to_dict(self) -> JsonObject:
        found = self.detection_interval
        return {**asdict(self), "interval": list(self.interval), "detection_interval": found and list(found)}

    def __str__(self) -> str:
        low, high = self.interval
        known = ""
        if self.detection_rate is not None:
            known = f"; {self.detection_rate:.1%} of {self.anomalous} known anomalies are above"
            if self.detection_interval is not None:
                known += " (95% interval {:.1%} to {:.1%})".format(*self.detection_interval)
        if self.domains:
            known += "; above by domain: " + ", ".join(f"{d} {share:.1%}" for d, share in self.domains.items())
        by = "" if self.clusters == self.normal else f" of {self.clusters} recordings"
        return (
            f"threshold {self.value:.4g}: expected false-alarm rate {self.false_alarm_rate:.2%}, 95% interval {low:.2%} to {high:.2%} "
            f"({self.normal} normal items{by}){known}"
        )


def parse_rate(threshold: str | float) -> float | None:
    """Return the false-alarm rate of "0.01fpr" or 0.01, and None for "auto". Raises RecipeError for anything else."""
    if threshold == AUTO:
        return None
    text = str(threshold)
    try:
        rate = float(text.removesuffix("fpr"))
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1:
        raise RecipeError(f'threshold {text!r}: write "auto", or the wanted false-alarm rate, e.g. "0.01fpr"')
    return rate


def alarm_threshold(
    normal_N: np.ndarray,
    threshold: str | float = AUTO,
    *,
    clusters: int | None = None,
    anomalous_M: np.ndarray | None = None,
    anomalous_clusters: int | None = None,
) -> AlarmThreshold:
    """Choose the threshold from the scores of normal items, none of which was its own reference.

    normal_N: scores of normal items
    threshold: "auto", or a false-alarm rate such as "0.01fpr"
    clusters: number of recordings that the items come from; default: every item is one of its own
    anomalous_M: scores of known anomalous items, only to report how many are above the threshold
    anomalous_clusters: number of recordings that these come from; default: every item is one of its own

    Raises DataError if there are too few normal items for the rate.
    """
    from scipy.stats import beta

    n = len(normal_N)
    if not n:
        raise DataError("threshold: no normal reference has another one to be compared with, so no threshold can be chosen")
    rate = parse_rate(threshold)
    k = max(1, int(np.floor((AUTO_RATE if rate is None else rate) * (n + 1) + 1e-9)))
    if rate is not None and rate * (n + 1) < 1 - 1e-9:
        raise DataError(
            f"threshold {threshold}: needs at least {int(np.ceil(1 / rate - 1e-9)) - 1} normal references, there are {n}; the lowest "
            f"false-alarm rate that these can estimate is {1 / (n + 1):.4f}: give more, or use a higher rate, or auto"
        )
    value = float(np.sort(normal_N)[n - k])
    expected = k / (n + 1)
    m = n if clusters is None else min(clusters, n)
    tail = (1 - LEVEL) / 2
    low, high = beta.ppf([tail, 1 - tail], expected * (m + 1), (1 - expected) * (m + 1))
    chosen = AlarmThreshold(value, expected, (float(low), float(high)), n, m)
    if anomalous_M is None or not len(anomalous_M):
        return chosen
    rate, count = float((anomalous_M > value).mean()), len(anomalous_M)
    trials = count if anomalous_clusters is None else min(anomalous_clusters, count)
    return replace(chosen, detection_rate=rate, anomalous=count, detection_interval=share_interval(rate * trials, trials))
