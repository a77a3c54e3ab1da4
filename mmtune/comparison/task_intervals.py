"""Bootstrap intervals of a task's metrics, resampled by cluster. Metrics such as macro-F1 and AUROC are no means over rows.

Each resample draws whole clusters with replacement and computes the metrics with the rows' counts. The bounds are percentiles with
tails widened for few clusters (Hesterberg 2015, arXiv 1411.5279, section 4.3).
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS
from mmtune.comparison.paired_difference import PairedDifference
from mmtune.errors import DataError
from mmtune.evaluation.clusters import clusters_by_value
from mmtune.evaluation.seed_statistics import share_interval, t_quantile
from mmtune.evaluation.tasks.classified import Classified
from mmtune.evaluation.tasks.task import RowScores, TaskScores

LEVEL, RESAMPLES = 0.95, 500

Statistic = Callable[[np.ndarray], Mapping[str, float]]
"""Maps counts of the rows [N] to {metric: value}."""


def metric_intervals(scores: TaskScores, source: Mapping[str, str | None] | None, task: str) -> dict[str, list[float] | None]:
    """Return {metric: [lower, upper]}, or None for each metric with fewer than `MIN_CLUSTERS` clusters.

    Where every resample has the metric 0, or 1, the other end is the exact one of as many independent trials as there are clusters
    (Clopper and Pearson 1934): 20 rows without an error do not prove that there are none.
    """
    rows = _with_rows(scores, task)
    clusters = _clusters(rows.row_ids, source)
    bounds = resampled_bounds(rows.weighted_metrics, clusters)
    if bounds is None:
        return dict.fromkeys(rows.metrics)
    count, found = len(np.unique(clusters)), dict[str, list[float] | None]()
    for m in rows.metrics:
        low, high = float(bounds[0][m]), float(bounds[1][m])
        found[m] = list(share_interval(low * count, count)) if low == high in (0, 1) else [low, high]
    return found


def task_difference(
    base: TaskScores, candidate: TaskScores, source: Mapping[str, str | None] | None, task: str
) -> dict[str, PairedDifference]:
    """Return {metric: difference candidate - base} on the same rows. Raises DataError if the rows differ.

    wins, losses: numbers of rows; of classifications those that only the candidate, or only the base, has right, else 0
    """
    before, after = _with_rows(base, task), _with_rows(candidate, task)
    if before.row_ids != after.row_ids:
        raise DataError(f"{task}: the two models scored other rows, so they cannot be compared")

    def change(weights: np.ndarray) -> dict[str, float]:
        new, old = after.weighted_metrics(weights), before.weighted_metrics(weights)
        return {m: new[m] - old[m] for m in new}

    clusters = _clusters(before.row_ids, source)
    bounds = resampled_bounds(change, clusters)
    wins = losses = 0
    if isinstance(before, Classified) and isinstance(after, Classified):
        old_right, new_right = (np.array([s.classes[i] for i in s.predicted]) == _truth(s) for s in (before, after))
        wins, losses = int((new_right & ~old_right).sum()), int((old_right & ~new_right).sum())
    return {
        m: PairedDifference(
            base=float(before.metrics[m]),
            candidate=float(after.metrics[m]),
            difference=float(after.metrics[m] - before.metrics[m]),
            interval=(-1.0, 1.0) if bounds is None else (float(bounds[0][m]), float(bounds[1][m])),
            wins=wins,
            losses=losses,
            queries=len(before.row_ids),
            clusters=len(np.unique(clusters)),
        )
        for m in before.metrics
    }


def resampled_bounds(
    statistic: Statistic, clusters: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Return ({metric: lower bound}, {metric: upper bound}) of a statistic; None with fewer than `MIN_CLUSTERS` clusters.

    clusters: [N], the cluster number of each row
    """
    from scipy.special import ndtr

    names, at = np.unique(clusters, return_inverse=True)
    count = len(names)
    if count < MIN_CLUSTERS:
        return None
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, count, count), minlength=count)[at]
        try:
            drawn.append(statistic(weight))
        except DataError:  # e.g. no anomalous row was drawn
            continue
    if not drawn:
        return None
    tail = float(ndtr(-math.sqrt(count / (count - 1)) * t_quantile(0.5 + level / 2, count - 1)))
    low, high = {}, {}
    for m in drawn[0]:
        low[m], high[m] = (float(q) for q in np.quantile([d[m] for d in drawn], [tail, 1 - tail]))
    return low, high


def _truth(scores: Classified) -> np.ndarray:
    return np.array([scores.classes[i] for i in scores.truth])


def _clusters(row_ids: list[str], source: Mapping[str, str | None] | None) -> np.ndarray:
    return np.arange(len(row_ids)) if source is None else clusters_by_value([[r] for r in row_ids], source)


def _with_rows(scores: TaskScores, task: str) -> RowScores:
    if not isinstance(scores, RowScores):
        raise DataError(f"{task}: its result has no `row_ids` and `weighted_metrics`, so it has no intervals")
    return scores
