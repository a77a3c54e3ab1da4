"""Before and after: the queries that gained most and those that lost most, with what each model found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.comparison.gate import MEAN
from mmtune.reporting.measured import SIDES, Measured
from mmtune.search.tie_order import ordered, to_scores

TOP = 5
MAX_DIRECTIONS = 2


@dataclass
class Hit:
    """An item found: `row` and `modality` say where its value is."""

    row: int
    modality: str
    right: bool
    score: float


@dataclass
class Example:
    """One query. value and first by side: the metric, and the rank of the first right answer."""

    row: int
    modality: str
    value: dict[str, float]
    first: dict[str, int]
    hits: dict[str, list[Hit]]


@dataclass
class Gallery:
    """Examples of one direction; counts of all its queries that rose and fell."""

    direction: str
    metric: str
    improved: list[Example]
    harmed: list[Example]
    rose: int
    fell: int


def galleries(found: Measured, count: int) -> list[Gallery]:
    """The gate's direction, or the first ones between modalities; at most `count` examples of each kind in each."""
    gate = found.comparison.gate
    names = found.across[:MAX_DIRECTIONS] if gate.direction == MEAN else [gate.direction]
    return [_gallery(found, name, gate.metric, count) for name in names]


def _gallery(found: Measured, name: str, metric: str, count: int) -> Gallery:
    sides = dict(zip(SIDES, (found.comparison.base, found.comparison.candidate), strict=True))
    old, new = (sides[s].directions[name] for s in SIDES)
    assert old.values is not None and new.values is not None and old.clusters is not None
    change = new.values[metric] - old.values[metric]
    values = {s: sides[s].directions[name].values[metric] for s in SIDES}  # type: ignore[index]
    first = {s: np.rint(1 / sides[s].directions[name].values["mrr"]).astype(int) for s in SIDES}  # type: ignore[index]
    queries = found.sides(name, "before")[0]
    place = {row: i for i, row in enumerate(queries.ids)}
    right = found.right(name)
    out = []
    for sign in (1, -1):
        chosen = pick(sign * change, old.clusters, count)
        at = np.array([place[old.query_ids[i]] for i in chosen], np.int64)
        hits = {s: _hits(found, name, s, at, [right[q] for q in at]) for s in SIDES}
        out.append(
            [
                Example(
                    found.row[old.query_ids[i]],
                    queries.name,
                    {s: float(values[s][i]) for s in SIDES},
                    {s: int(first[s][i]) for s in SIDES},
                    {s: hits[s][n] for s in SIDES},
                )
                for n, i in enumerate(chosen)
            ]
        )
    return Gallery(name, metric, out[0], out[1], int((change > 1e-12).sum()), int((change < -1e-12).sum()))


def pick(gain: np.ndarray, clusters: np.ndarray, count: int) -> list[int]:
    """Positions of the greatest gains above zero, one a cluster before a second of any: eight times the same thing teach
    nothing. Ties by position."""
    down = [int(i) for i in np.argsort(-gain, kind="stable") if gain[i] > 1e-12]
    seen: set[int] = set()
    fresh = [i for i in down if not (clusters[i] in seen or seen.add(int(clusters[i])))]  # type: ignore[func-returns-value]
    again = [i for i in down if i not in set(fresh)]
    return sorted((fresh + again)[:count], key=lambda i: (-gain[i], i))


def _hits(found: Measured, name: str, side: str, at: np.ndarray, right: Sequence[np.ndarray]) -> list[list[Hit]]:
    """The TOP candidates of each query item in the total order."""
    candidates = found.sides(name, side)[1]
    out = []
    for keys, good in zip(found.keys(name, side, at), right, strict=True) if len(at) else ():
        best = [int(j) for j in ordered(keys)[:TOP] if keys[j] > np.iinfo(np.int32).min]
        known = set(good.tolist())
        out.append(
            [Hit(found.row[candidates.ids[j]], candidates.name, j in known, float(to_scores(keys[j : j + 1])[0])) for j in best]
        )
    return out
