"""Retrieval metrics from the ranks of the relevant candidates alone, as trec_eval defines them, and the table of metrics.

hit@k is ir_measures' Success@k (CLIP_benchmark calls it recall), recall@k its R@k, precision@k its P@k (always over k),
mrr RR, map AP, ndcg@k nDCG@k with linear gains and log2(rank + 1) discounts (Järvelin & Kekäläinen 2002). They are computed
here and not by a library because ranks are exact in one total order, and no Q x N matrix of scores is ever held.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mmtune.errors import RecipeError
from mmtune.runtime import plugins


@dataclass
class RelevantRanks:
    """Ranks of the relevant candidates of Q queries: P pairs (query, relevant candidate), sorted by query, then by rank.

    query [P] the query's number, each from 0 to Q-1 at least once; rank [P] from 1; grade [P] > 0 (1 without graded judgments);
    nth [P] the pair's place among those of its query, from 0; ideal [P] the grades of each query in descending order.
    """

    query: np.ndarray
    rank: np.ndarray
    grade: np.ndarray
    nth: np.ndarray = field(init=False)
    ideal: np.ndarray = field(init=False)
    relevant: np.ndarray = field(init=False)
    """[Q] number of relevant candidates of each query."""

    def __post_init__(self) -> None:
        grade, query = self.grade, self.query
        self.ideal = grade[np.lexsort((-grade, query))]
        order = np.lexsort((self.rank, query))
        self.query, self.rank, self.grade = query[order], self.rank[order], grade[order]
        self.relevant = np.bincount(self.query)
        self.nth = np.arange(len(self.query)) - self.first[self.query]

    def __len__(self) -> int:
        """The number of queries Q."""
        return len(self.relevant)

    @cached_property
    def first(self) -> np.ndarray:
        """[Q] position of each query's first pair, its best ranked relevant candidate."""
        return np.concatenate([[0], np.cumsum(self.relevant)[:-1]])

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums [Q] over each query of `values` [P]."""
        return np.bincount(self.query, values, len(self))


class Metric:
    """A retrieval metric, higher is better. Subclass it and name the subclass in `register_metric`.

    cutoff: True when the metric looks at the first k candidates and is reported as "name@k" for every k of an evaluation.
    """

    cutoff: bool = False

    def per_query(self, ranks: RelevantRanks, k: int) -> np.ndarray:
        """The value [Q] of each query (float). k: the cut-off; 0 for a metric without one."""
        raise NotImplementedError


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A metric given by a function (ranks, k) -> [Q]."""

    function: Callable[[RelevantRanks, int], np.ndarray]
    cutoff: bool = True

    def per_query(self, ranks: RelevantRanks, k: int) -> np.ndarray:
        return self.function(ranks, k)


def hit(ranks: RelevantRanks, k: int) -> np.ndarray:
    """1 when a relevant candidate is among the first k, else 0."""
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
    """Mean, over the relevant candidates, of the precision at each one's rank."""
    return ranks.sum((ranks.nth + 1) / ranks.rank) / ranks.relevant


def ndcg(ranks: RelevantRanks, k: int) -> np.ndarray:
    """Discounted gain of the first k candidates over that of the best possible order."""
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
"""Every metric that an evaluation reports, in the order of tables: name -> Metric, its class, or "package.module:Class"."""


def register_metric(name: str, metric: "Metric | type[Metric] | str") -> None:
    """Add a metric: every evaluation reports it from now on, and `train.metric` and `gate.metric` may name it."""
    plugins.register(METRICS, name, metric, "metric")


@dataclass(frozen=True)
class MetricColumn:
    """One reported metric: its name as in tables ("ndcg@10"), the metric, and its cut-off (0: none)."""

    name: str
    metric: Metric
    k: int


def find_metric(name: str, key: str = "") -> Metric:
    """The metric of a name without cut-off, or of "package.module:Class". RecipeError, beginning with `key`, for no metric."""
    part = plugins.resolve(METRICS, name, "metric", key=key)
    metric = part() if isinstance(part, type) else part
    if not isinstance(metric, Metric):
        raise RecipeError(f"{key + ': ' if key else ''}metric {name!r}: {part!r} is no mmtune.evaluation.Metric")
    return metric


def metric_columns(ks: Iterable[int], more: Iterable[str] = (), key: str = "") -> list[MetricColumn]:
    """The columns of an evaluation: every metric of the table at every cut-off, then `more` by name ("ndcg@3",
    "package.module:Class@10"). Raises RecipeError for a name that is no metric; `key` is what its message begins with."""
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
    """The cut-offs `ks`, and those of the metrics `names` ("ndcg@3" has 3)."""
    cutoffs = [n.partition("@")[2] for n in names]
    return sorted({*ks, *(int(c) for c in cutoffs if c.isdigit())})


def check_ks(ks: Iterable[int]) -> tuple[int, ...]:
    """Sorted unique cut-offs. Raises RecipeError for anything but whole numbers from 1 up."""
    ks = tuple(ks)
    bad = [k for k in ks if not isinstance(k, int | np.integer) or k < 1]
    if bad or not ks:
        raise RecipeError(f"k: {bad or 'none'} given; cut-offs are whole numbers from 1 up, e.g. 1,5,10")
    return tuple(sorted({int(k) for k in ks}))


def per_query_values(ranks: RelevantRanks, columns: Sequence[MetricColumn]) -> dict[str, np.ndarray]:
    """Value [Q] of every query by column. RecipeError when a metric returns anything but one finite number a query."""
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
