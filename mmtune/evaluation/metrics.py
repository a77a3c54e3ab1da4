"""Retrieval metrics, computed from the ranks of the relevant candidates as trec_eval defines them, and the table of metrics.

Names of the metrics in ir_measures:
    hit@k: Success@k (CLIP_benchmark calls it recall)
    recall@k: R@k
    precision@k: P@k (always divided by k)
    mrr: RR
    map: AP
    ndcg@k: nDCG@k with linear gains and log2(rank + 1) discounts (Järvelin & Kekäläinen 2002)

They are implemented here instead of taken from a library, so that no Q x N score matrix is needed and ties are broken by one
exact total order.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mmtune.errors import RecipeError
from mmtune.runtime import plugins


@dataclass
class RelevantRanks:
    """Ranks of the relevant candidates of Q queries, as P pairs (query, relevant candidate), sorted by query, then by rank.

    query: [P], number of the query; each of 0..Q-1 occurs at least once
    rank: [P], from 1
    grade: [P], > 0; 1 without graded judgments
    nth: [P], position of the pair among those of its query, from 0
    ideal: [P], the grades of each query in descending order
    """

    query: np.ndarray
    rank: np.ndarray
    grade: np.ndarray
    nth: np.ndarray = field(init=False)
    ideal: np.ndarray = field(init=False)
    relevant: np.ndarray = field(init=False)
    """[Q], number of relevant candidates of each query"""

    def __post_init__(self) -> None:
        grade, query = self.grade, self.query
        self.ideal = grade[np.lexsort((-grade, query))]
        order = np.lexsort((self.rank, query))
        self.query, self.rank, self.grade = query[order], self.rank[order], grade[order]
        self.relevant = np.bincount(self.query)
        self.nth = np.arange(len(self.query)) - self.first[self.query]

    def __len__(self) -> int:
        """Return Q, the number of queries."""
        return len(self.relevant)

    @cached_property
    def first(self) -> np.ndarray:
        """[Q]: position of each query's first pair, which is its best ranked relevant candidate."""
        return np.concatenate([[0], np.cumsum(self.relevant)[:-1]])

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum `values` [P] by query: [Q]."""
        return np.bincount(self.query, values, len(self))


class Metric:
    """A retrieval metric; higher is better. Subclass it and pass the subclass to `register_metric`.

    cutoff: True if the metric uses only the first k candidates; it is then reported as "name@k" for every cut-off k
    """

    cutoff: bool = False

    def per_query(self, ranks: RelevantRanks, k: int) -> np.ndarray:
        """Return the metric of each query, float [Q]. k: the cut-off; 0 for a metric without one."""
        raise NotImplementedError


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A metric computed by a function (ranks, k) -> [Q]."""

    function: Callable[[RelevantRanks, int], np.ndarray]
    cutoff: bool = True

    def per_query(self, ranks: RelevantRanks, k: int) -> np.ndarray:
        return self.function(ranks, k)


def hit(ranks: RelevantRanks, k: int) -> np.ndarray:
    """1 if a relevant candidate is among the first k, else 0."""
    return (ranks.sum(ranks.rank <= k) > 0).astype(np.float64)


def recall(ranks: RelevantRanks, k: int) -> np.ndarray:
    """Share of the relevant candidates that are among the first k."""
    return ranks.sum(ranks.rank <= k) / ranks.relevant


def precision(ranks: RelevantRanks, k: int) -> np.ndarray:
    """Share of the first k candidates that are relevant."""
    return ranks.sum(ranks.rank <= k) / k


def reciprocal_rank(ranks: RelevantRanks, k: int) -> np.ndarray:
    """1 / rank of the best ranked relevant candidate."""
    return 1 / ranks.rank[ranks.first].astype(np.float64)


def average_precision(ranks: RelevantRanks, k: int) -> np.ndarray:
    """Mean of the precision at the rank of each relevant candidate."""
    return ranks.sum((ranks.nth + 1) / ranks.rank) / ranks.relevant


def ndcg(ranks: RelevantRanks, k: int) -> np.ndarray:
    """Discounted cumulative gain of the first k candidates, divided by that of the ideal order."""
    gain = ranks.sum(np.where(ranks.rank <= k, ranks.grade / np.log2(ranks.rank + 1.0), 0))
    return gain / ranks.sum(np.where(ranks.nth < k, ranks.ideal / np.log2(ranks.nth + 2.0), 0))


METRICS: dict[str, "Metric | type[Metric] | str"] = {
    "hit": FunctionMetric(hit),
    "recall": FunctionMetric(recall),
    "precision": FunctionMetric(precision),
    "mrr": FunctionMetric(reciprocal_rank, cutoff=False),
    "map": FunctionMetric(average_precision, cutoff=False),
    "ndcg": FunctionMetric(ndcg),
}
"""All metrics that an evaluation reports, in table order: {name: Metric, its class, or "package.module:Class"}."""


def register_metric(name: str, metric: "Metric | type[Metric] | str") -> None:
    """Add a metric. Every later evaluation reports it, and `train.metric` and `gate.metric` accept its name."""
    plugins.register(METRICS, name, metric, "metric")


@dataclass(frozen=True)
class MetricColumn:
    """One reported metric.

    name: as in tables, e.g. "ndcg@10"
    k: the cut-off; 0 for a metric without one
    """

    name: str
    metric: Metric
    k: int


def find_metric(name: str, key: str = "") -> Metric:
    """Return the metric for a name without cut-off, or for "package.module:Class".

    Raises RecipeError, whose message starts with `key`, if there is no such metric.
    """
    part = plugins.resolve(METRICS, name, "metric", key=key)
    metric = part() if isinstance(part, type) else part
    if not isinstance(metric, Metric):
        raise RecipeError(f"{key + ': ' if key else ''}metric {name!r}: {part!r} is not a subclass of mmtune.evaluation.Metric")
    return metric


def metric_columns(ks: Iterable[int], more: Iterable[str] = (), key: str = "") -> list[MetricColumn]:
    """Return the columns of an evaluation: every metric of METRICS at every cut-off, then the metrics `more`.

    more: names with cut-off, e.g. "ndcg@3" or "package.module:Class@10"
    key: recipe key with which error messages start

    Raises RecipeError for an unknown metric or a wrong cut-off.
    """
    ks, start = check_ks(ks), f"{key}: " if key else ""
    columns: dict[str, MetricColumn] = {}
    for name in METRICS:
        metric = find_metric(name)
        for k in ks if metric.cutoff else (0,):
            column = MetricColumn(f"{name}@{k}" if k else name, metric, k)
            columns[column.name] = column
    known = list(columns)
    for full in more:
        if full in columns:
            continue
        name, at, cutoff = full.partition("@")
        if name not in METRICS and not plugins.is_target(name):
            raise RecipeError(f"{start}no metric {full!r}; there are: {', '.join(known)} (or package.module:Class)")
        metric = find_metric(name, key)
        if metric.cutoff != bool(at) or (at and not (cutoff.isdigit() and int(cutoff) > 0)):
            form = f"{name}@K with a whole number K from 1 up" if metric.cutoff else name
            raise RecipeError(f"{start}no metric {full!r}; write {form}")
        columns[full] = MetricColumn(full, metric, int(cutoff or 0))
    return list(columns.values())


def with_cutoffs(ks: Iterable[int], names: Iterable[str]) -> list[int]:
    """Return the cut-offs `ks` together with those in the metric names `names` ("ndcg@3" has cut-off 3), sorted."""
    cutoffs = [n.partition("@")[2] for n in names]
    return sorted({*ks, *(int(c) for c in cutoffs if c.isdigit())})


def check_ks(ks: Iterable[int]) -> tuple[int, ...]:
    """Return sorted unique cut-offs. Raises RecipeError unless all are whole numbers from 1 up."""
    ks = tuple(ks)
    bad = [k for k in ks if not isinstance(k, int | np.integer) or k < 1]
    if bad or not ks:
        raise RecipeError(f"k: {bad or 'none'} given; cut-offs are whole numbers from 1 up, e.g. 1,5,10")
    return tuple(sorted({int(k) for k in ks}))


def per_query_values(ranks: RelevantRanks, columns: Sequence[MetricColumn]) -> dict[str, np.ndarray]:
    """Compute {column name: value of every query, [Q]}.

    Raises RecipeError if a metric does not return one finite number per query.
    """
    out = {}
    for column in columns:
        values = np.asarray(column.metric.per_query(ranks, column.k), np.float64)
        if values.shape != (len(ranks),) or not np.isfinite(values).all():
            raise RecipeError(
                f"metric {column.name}: returned an array of shape {values.shape}, {int((~np.isfinite(values)).sum())} values "
                f"not finite; it has to give one finite number for each of the {len(ranks)} queries"
            )
        out[column.name] = values
    return out
