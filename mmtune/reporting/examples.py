"""Example queries: those that improved most and those that got worse most, with the results of both models."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmtune.comparison.gate import MEAN
from mmtune.evaluation.result import Direction
from mmtune.reporting.measured import SIDES, Measured
from mmtune.reporting.window_strip import WindowStrip
from mmtune.search.tie_order import order_by_key, to_scores
from mmtune.search.vectors import GatheredRows

TOP = 5  # results shown for each query
LOOKED_AT = 50  # results among which TOP different ones are chosen
MAX_DIRECTIONS = 2
EPSILON = 1e-12
"""Changes of a metric up to this size count as no change."""


@dataclass
class ExampleResult:
    """One retrieved item.

    row: number of a row that contains it
    modality: its modality
    relevant: whether it is relevant to the query
    score: its cosine similarity to the query
    rank: its rank among all candidates, from 1
    copies: ranks of its copies among the best results, which are not shown again
    strip: cosines of its windows with the query, if it is a recording longer than the tower's window
    """

    row: int
    modality: str
    relevant: bool
    score: float
    rank: int = 0
    copies: list[int] = field(default_factory=list)
    strip: WindowStrip | None = None


@dataclass
class ExampleQuery:
    """One query with the results of both models. The keys of the dicts are "before" and "after".

    row, modality: the query's value
    value: the metric for this query
    first_relevant: rank of the first relevant item
    results: the retrieved items, best first; the last one is the first relevant item, if that ranks below the others
    strip: cosines of its windows with the first relevant item, by the tuned model, if it is a recording longer than the tower's window
    """

    row: int
    modality: str
    value: dict[str, float]
    first_relevant: dict[str, int]
    results: dict[str, list[ExampleResult]]
    strip: WindowStrip | None = None


@dataclass
class ExampleSection:
    """Examples of one direction.

    improved, harmed: the queries that are shown
    gained, lost: numbers of all queries of the direction for which the metric rose or fell
    """

    direction: str
    metric: str
    improved: list[ExampleQuery]
    harmed: list[ExampleQuery]
    gained: int
    lost: int


def example_sections(measured: Measured, count: int) -> list[ExampleSection]:
    """Choose examples from the gate's direction or, if the gate uses the mean, from the first directions between modalities.

    count: maximum number of improved queries, and of harmed queries, in each direction
    """
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
    for example in (*out[0], *out[1]):
        _locate(measured, name, example)
    gained, lost = int((change > EPSILON).sum()), int((change < -EPSILON).sum())
    return ExampleSection(name, metric, out[0], out[1], gained, lost)


def _locate(measured: Measured, name: str, example: ExampleQuery) -> None:
    """Add the strips of the long recordings among the query and its results."""
    if measured.located is None:
        return
    for side in SIDES:
        queries, candidates = measured.items_of(name, side)
        query = _vector(measured, queries.query_vectors, queries.name, example.row)
        for result in example.results[side]:
            result.strip = measured.located.strip(side, result.modality, result.row, query)
        right = next((r for r in example.results[side] if r.relevant), None)
        if right is not None:  # of both sides; that of the tuned model, the last one, stays
            vector = _vector(measured, candidates.vectors, candidates.name, right.row)
            example.strip = measured.located.strip(side, example.modality, example.row, vector)


def _vector(measured: Measured, vectors: "np.ndarray | GatheredRows", modality: str, row: int) -> np.ndarray:
    """Return the L2-normalised vector [D] of the item whose id is that of the row of the data."""
    return np.asarray(vectors[np.array([measured.item_number[modality][measured.data.ids[row]]])])[0]


def _per_query(direction: Direction, metric: str) -> np.ndarray:
    """The metric of each query [Q]."""
    assert direction.values is not None, "the comparison keeps every query's metrics"
    return direction.values[metric]


def most_changed(gain_Q: np.ndarray, clusters_Q: np.ndarray, count: int) -> list[int]:
    """Positions of the `count` largest positive gains, largest first; ties are ordered by position.

    A second query of a cluster is chosen only if every cluster already has one. Otherwise all examples could be about the same
    product.
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
    """Return the TOP candidates of each query item, sorted by score with ties broken as in evaluation.

    Copies count as one. The first relevant candidate is added, whatever its rank.
    """
    if not len(queries):
        return []
    candidates, out = measured.items_of(name, side)[1], []
    for keys, relevant_items in zip(measured.score_keys(name, side, queries), relevant, strict=True):
        order, known = order_by_key(keys), set(relevant_items.tolist())
        shown: list[ExampleResult] = []
        for rank, j in enumerate(order[:LOOKED_AT], 1):
            if keys[j] == np.iinfo(np.int32).min:  # the query itself
                break
            row = measured.row_number[candidates.ids[j]]
            first = next(
                (r for r in shown if (int(j) in known) == r.relevant and measured.copies.same(candidates.name, r.row, row)),
                None,
            )
            if first is not None:
                first.copies.append(rank)
            elif len(shown) < TOP:
                score = float(to_scores(keys[j : j + 1])[0])
                shown.append(ExampleResult(row, candidates.name, int(j) in known, score, rank))
            else:
                break
        if not any(r.relevant for r in shown):
            at = next((n for n, j in enumerate(order) if int(j) in known), None)
            if at is not None:
                j, score = order[at], float(to_scores(keys[order[at] : order[at] + 1])[0])
                shown.append(ExampleResult(measured.row_number[candidates.ids[j]], candidates.name, True, score, at + 1))
        out.append(shown)
    return out
