"""Example queries: those that gained most and those that lost most, with the results of both models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.comparison.gate import MEAN
from mmtune.evaluation.result import Direction
from mmtune.reporting.measured import SIDES, Measured
from mmtune.search.tie_order import order_by_key, to_scores

TOP = 5
MAX_DIRECTIONS = 2
EPSILON = 1e-12
"""Smaller changes of a metric count as none."""


@dataclass
class ExampleResult:
    """One retrieved item: the row and modality of its value, whether it is relevant, its cosine similarity."""

    row: int
    modality: str
    relevant: bool
    score: float


@dataclass
class ExampleQuery:
    """One query. By side: the metric's value, the rank of the first relevant item, and the results, best first."""

    row: int
    modality: str
    value: dict[str, float]
    first_relevant: dict[str, int]
    results: dict[str, list[ExampleResult]]


@dataclass
class ExampleSection:
    """Examples of one direction; gained and lost count all its queries whose metric rose or fell."""

    direction: str
    metric: str
    improved: list[ExampleQuery]
    harmed: list[ExampleQuery]
    gained: int
    lost: int


def example_sections(measured: Measured, count: int) -> list[ExampleSection]:
    """The gate's direction, or the first directions between modalities; at most `count` examples of each kind in each."""
    gate = measured.comparison.gate
    names = measured.cross_modal_directions[:MAX_DIRECTIONS] if gate.direction == MEAN else [gate.direction]
    return [_section(measured, name, gate.metric, count) for name in names]


def _section(measured: Measured, name: str, metric: str, count: int) -> ExampleSection:
    evaluations = dict(zip(SIDES, (measured.comparison.base, measured.comparison.candidate), strict=True))
    directions = {side: evaluations[side].directions[name] for side in SIDES}
    values = {side: _per_query(directions[side], metric) for side in SIDES}
    first_relevant = {side: np.rint(1 / _per_query(directions[side], "mrr")).astype(int) for side in SIDES}
    change = values["after"] - values["before"]
    query_ids, clusters = directions["before"].query_ids, directions["before"].clusters
    assert clusters is not None, "the comparison keeps every query's metrics"
    queries = measured.items_of(name, "before")[0]
    position = {row_id: i for i, row_id in enumerate(queries.ids)}
    relevant = measured.relevant_items(name)
    out = []
    for sign in (1, -1):
        chosen = most_changed(sign * change, clusters, count)
        at = np.array([position[query_ids[i]] for i in chosen], np.int64)
        results = {side: _results(measured, name, side, at, [relevant[q] for q in at]) for side in SIDES}
        out.append(
            [
                ExampleQuery(
                    measured.row_number[query_ids[i]],
                    queries.name,
                    {side: float(values[side][i]) for side in SIDES},
                    {side: int(first_relevant[side][i]) for side in SIDES},
                    {side: results[side][n] for side in SIDES},
                )
                for n, i in enumerate(chosen)
            ]
        )
    gained, lost = int((change > EPSILON).sum()), int((change < -EPSILON).sum())
    return ExampleSection(name, metric, out[0], out[1], gained, lost)


def _per_query(direction: Direction, metric: str) -> np.ndarray:
    """[Q] the metric of each query."""
    assert direction.values is not None, "the comparison keeps every query's metrics"
    return direction.values[metric]


def most_changed(gain_Q: np.ndarray, clusters_Q: np.ndarray, count: int) -> list[int]:
    """Positions of the `count` greatest gains above zero, the greatest first, ties by position.

    Every cluster gives one query before any gives a second: eight queries about the same product would show one thing.
    """
    descending = [int(i) for i in np.argsort(-gain_Q, kind="stable") if gain_Q[i] > EPSILON]
    _, first = np.unique(clusters_Q[descending], return_index=True)
    first_of_cluster = {descending[i] for i in first}
    repeated = [i for i in descending if i not in first_of_cluster]
    chosen = [*(i for i in descending if i in first_of_cluster), *repeated][:count]
    return sorted(chosen, key=lambda i: (-gain_Q[i], i))


def _results(
    measured: Measured, name: str, side: str, queries: np.ndarray, relevant: Sequence[np.ndarray]
) -> list[list[ExampleResult]]:
    """The TOP candidates of each query item, in the total order."""
    if not len(queries):
        return []
    candidates = measured.items_of(name, side)[1]
    out = []
    for keys, relevant_items in zip(measured.score_keys(name, side, queries), relevant, strict=True):
        best = [int(j) for j in order_by_key(keys)[:TOP] if keys[j] > np.iinfo(np.int32).min]
        known = set(relevant_items.tolist())
        out.append(
            [
                ExampleResult(
                    measured.row_number[candidates.ids[j]], candidates.name, j in known, float(to_scores(keys[j : j + 1])[0])
                )
                for j in best
            ]
        )
    return out
