"""How much can a linear head on frozen features gain? A probe of the signal in closed form: seconds, no training loop.

Regularised canonical correlation between the two sides' features, with each thing's mean as the other view (for one
modality this is Fisher's discriminant), blended with the model's own space; shrinkage and blend are chosen inside the
training part. It is a floor for what a trained head reaches: it never sees the retrieval loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmtune.comparison.paired_difference import DirectionPair, PairedDifference, paired_differences
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.clusters import row_clusters
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.result import Direction
from mmtune.relevance.items import names_to_labels, take_rows
from mmtune.search.vectors import unit

SHRINK, BLEND, RANK = (0.03, 0.3, 3.0), (0.0, 0.5, 1.0), 256
ENOUGH = 4  # rows of the median group from which tuning will have seen the groups that it is asked for

Vectors = Mapping[str, Embeddings]


@dataclass
class Probe:
    """change: base against head on rows that the head did not see; curve: (share of the training part, metric); unseen: the
    held-out rows are of groups that the head never saw."""

    change: PairedDifference
    curve: list[tuple[float, float]]
    unseen: bool
    rows: int


@dataclass
class Head:
    """Centres and maps of both sides, and the weight of the mapped part."""

    centre: dict[str, np.ndarray]
    map: dict[str, np.ndarray]
    blend: float

    def apply(self, vectors: Vectors) -> dict[str, Embeddings]:
        out = {}
        for m, e in vectors.items():
            asking = None if e.queries is None else self._apply(m, e.queries)
            out[m] = Embeddings(e.ids, e.groups, e.labels, self._apply(m, e.vectors), "probe", asking)
        return out

    def _apply(self, m: str, x_ND: np.ndarray) -> np.ndarray:
        mapped = unit((x_ND - self.centre[m]) @ self.map[m])
        return np.concatenate([(1 - self.blend) ** 0.5 * x_ND, self.blend**0.5 * mapped], axis=1).astype(np.float32)


def things(e: Embeddings) -> np.ndarray:
    """[N] int64: the group's label, or the row's own where it has none."""
    group: np.ndarray = np.asarray(e.labels["group"], np.int64) if "group" in e.labels else names_to_labels(e.groups)
    own: np.ndarray = np.asarray(e.labels["id"], np.int64) if "id" in e.labels else names_to_labels(e.ids)
    return np.where(group != 0, group, own)


def fit(vectors: Vectors, pair: tuple[str, str], shrink: float, blend: float) -> Head:
    """The head of `pair` from all rows of `vectors`."""
    a, b = pair
    sides = {m: (vectors[m].vectors.astype(np.float64), things(vectors[m])) for m in dict.fromkeys(pair)}
    centre = {m: x.mean(0) for m, (x, _) in sides.items()}
    names = np.intersect1d(sides[a][1], sides[b][1])
    means, counts = {}, {}
    for m, (x, thing) in sides.items():
        keep = np.isin(thing, names)
        at = np.searchsorted(names, thing[keep])
        counts[m] = np.bincount(at, minlength=len(names)).astype(np.float64)
        total = np.zeros((len(names), x.shape[1]))
        np.add.at(total, at, x[keep] - centre[m])
        means[m] = total / counts[m][:, None]
    weight = np.minimum(counts[a], counts[b])
    cross = (means[a] * (weight / weight.sum())[:, None]).T @ means[b]
    root = {}
    for m, (x, _) in sides.items():
        values, basis = np.linalg.eigh(np.cov(x.T, bias=True))
        values = values.clip(0) + shrink * max(values.mean(), 1e-12)
        root[m] = basis @ np.diag(values**-0.5) @ basis.T
    both = root[a] @ cross @ root[b]
    # Its singular vectors by way of the symmetric product: LAPACK's SVD was seen not to converge on a deficient one.
    squares, u = np.linalg.eigh(both @ both.T)
    s = np.sqrt(squares.clip(0))[::-1][:RANK]
    s = s[s > 1e-6 * s[0]] if s[0] > 0 else s[:1] + 1
    u = u[:, ::-1][:, : len(s)]
    maps = {a: root[a] @ u * np.sqrt(s), b: root[b] @ (both.T @ u) / np.sqrt(s)}
    return Head(centre, maps, blend)


def _direction(vectors: Vectors, pair: tuple[str, str], metric: str) -> Direction | None:
    ks = [int(metric.partition("@")[2])] if "@" in metric else [10]
    return evaluate_vectors(vectors, ks=ks, pairs=[pair], per_query=True).directions.get("->".join(pair))


def split_rows(
    vectors: Vectors, by_thing: bool, share: float, seed: int
) -> tuple[dict[str, Embeddings], dict[str, Embeddings]]:
    """(first `share`, rest) by a hash-like draw over clusters, or over rows."""
    cluster = row_clusters(vectors)
    ids = sorted(cluster)
    keys = sorted(set(cluster.values())) if by_thing else ids
    order = np.random.default_rng(seed).permutation(len(keys))
    first = {keys[i] for i in order[: round(share * len(keys))]}
    parts: tuple[dict[str, Embeddings], dict[str, Embeddings]] = ({}, {})
    for m, e in vectors.items():
        mask = np.array([(cluster[r] if by_thing else r) in first for r in e.ids], bool)
        parts[0][m], parts[1][m] = take_rows(e, np.flatnonzero(mask)), take_rows(e, np.flatnonzero(~mask))
    return parts


def best_head(vectors: Vectors, pair: tuple[str, str], metric: str, by_thing: bool, seed: int) -> Head:
    """Shrinkage and blend chosen on a quarter of `vectors`, then fitted on all of them."""
    inner, test = split_rows(vectors, by_thing, 0.75, seed)
    scores: dict[tuple[float, float], float] = {}
    for shrink in SHRINK:
        head = fit(inner, pair, shrink, 0.0)
        for blend in BLEND:
            found = _direction(Head(head.centre, head.map, blend).apply(test), pair, metric)
            scores[shrink, blend] = found.metrics[metric] if found else 0.0
    shrink, blend = max(scores, key=lambda k: (scores[k], -k[1], k[0]))  # of equals the one that changes least
    return fit(vectors, pair, shrink, blend)


def probe(vectors: Vectors, pair: tuple[str, str], metric: str = "ndcg@10", seed: int = 0) -> Probe:
    """Two-fold: each half is judged with the head of the other. Raises DataError when a half has no query with an answer."""
    vectors = {m: vectors[m] for m in dict.fromkeys(pair)}
    _, counts = np.unique(things(vectors[pair[1]]), return_counts=True)
    unseen = float(np.median(counts)) < ENOUGH
    halves = split_rows(vectors, unseen, 0.5, seed)
    parts, curve = [], {0.25: [], 0.5: [], 1.0: []}  # type: ignore[var-annotated]
    for n, (train, test) in enumerate(((halves[0], halves[1]), (halves[1], halves[0]))):
        base = _direction(test, pair, metric)
        if base is None or min(len(train[m].ids) for m in pair) < 8:
            raise DataError("too few rows with an answer to hold half of them out; label more rows before asking for advice")
        for share in curve:
            some = train if share == 1 else split_rows(train, unseen, share, seed + 10 + n)[0]
            head = best_head(some, pair, metric, unseen, seed + 20 + n) if min(len(some[m].ids) for m in pair) >= 4 else None
            found = _direction(head.apply(test), pair, metric) if head else base
            assert found is not None  # the same rows as the base
            curve[share].append(found.metrics[metric])
            if share == 1:
                parts.append(DirectionPair(base, found))
    change = paired_differences(parts, [metric])[metric]
    return Probe(change, [(s, float(np.mean(v))) for s, v in curve.items()], unseen, len(vectors[pair[1]].ids))
