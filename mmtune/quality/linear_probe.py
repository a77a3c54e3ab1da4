"""Linear probe: estimate how much a linear head on frozen features can gain, in closed form, without a training loop.

The head is a regularised canonical correlation analysis (CCA) between the features of the two modalities, computed on group
means. Within one modality this is Fisher's discriminant. The projected vector is blended with the model's original vector.
Shrinkage and blend are chosen inside the training part.

The gain is a lower bound for a trained head, because CCA does not optimise the retrieval loss. scikit-learn has no such solver:
its CCA is iterative and not regularised, and a logistic regression needs classes instead of pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmtune.comparison.paired_difference import DirectionPair, PairedDifference, paired_differences
from mmtune.contracts import Embeddings, JsonObject
from mmtune.errors import DataError
from mmtune.evaluation.clusters import row_clusters
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.metrics import with_cutoffs
from mmtune.evaluation.result import Direction
from mmtune.relevance.items import names_to_labels, take_rows
from mmtune.search.vectors import normalize_rows

SHRINKAGES, BLENDS = (0.03, 0.3, 3.0), (0.0, 0.5, 1.0)  # the values from which `best_head` chooses
MAX_RANK = 256  # maximum dimension of the projected vectors
SEEN_GROUPS = 4  # if the median group has at least this many rows, searched groups will be among the trained ones: see `probe`
SHARES = (0.25, 0.5, 1.0)  # shares of the training part, for the learning curve

Vectors = Mapping[str, Embeddings]


@dataclass
class Probe:
    """The result of the probe.

    change: difference with and without the head, on rows that the head was not fitted on
    curve: [(share of the training part, metric with the head)]
    held_out_groups: True if the test rows are from groups that the head was not fitted on; False if only the rows are held out
    rows: number of candidate rows
    """

    change: PairedDifference
    curve: list[tuple[float, float]]
    held_out_groups: bool
    rows: int

    def to_dict(self) -> JsonObject:
        curve = [list(point) for point in self.curve]
        return {**self.change.to_dict(), "curve": curve, "held_out_groups": self.held_out_groups}


@dataclass
class LinearHead:
    """A linear head.

    centre: {modality: mean to subtract}
    map: {modality: projection matrix}
    blend: weight of the projected vector; the original vector has the weight 1 - blend
    """

    centre: dict[str, np.ndarray]
    map: dict[str, np.ndarray]
    blend: float

    def apply(self, vectors: Vectors) -> dict[str, Embeddings]:
        """Return the vectors transformed by the head."""
        out = {}
        for m, e in vectors.items():
            queries = None if e.queries is None else self._apply(m, e.queries)
            out[m] = Embeddings(e.ids, e.groups, e.labels, self._apply(m, e.vectors), "probe", queries)
        return out

    def _apply(self, m: str, x_ND: np.ndarray) -> np.ndarray:
        projected = normalize_rows((x_ND - self.centre[m]) @ self.map[m])
        return np.concatenate([(1 - self.blend) ** 0.5 * x_ND, self.blend**0.5 * projected], axis=1).astype(np.float32)


def group_labels(e: Embeddings) -> np.ndarray:
    """[N] int64: the label of each row's group, or of the row itself if it has no group."""
    group: np.ndarray = np.asarray(e.labels["group"], np.int64) if "group" in e.labels else names_to_labels(e.groups)
    own: np.ndarray = np.asarray(e.labels["id"], np.int64) if "id" in e.labels else names_to_labels(e.ids)
    return np.where(group != 0, group, own)


def fit_head(vectors: Vectors, pair: tuple[str, str], shrinkage: float, blend: float) -> LinearHead:
    """Fit the head of `pair` on all rows of `vectors`.

    shrinkage: regularisation, added to the eigenvalues of each covariance as a multiple of their mean
    """
    a, b = pair
    sides = {m: (vectors[m].vectors.astype(np.float64), group_labels(vectors[m])) for m in dict.fromkeys(pair)}
    centre = {m: x.mean(0) for m, (x, _) in sides.items()}
    shared = np.intersect1d(sides[a][1], sides[b][1])
    means, counts = {}, {}
    for m, (x, group) in sides.items():
        keep = np.isin(group, shared)
        at = np.searchsorted(shared, group[keep])
        counts[m] = np.bincount(at, minlength=len(shared)).astype(np.float64)
        total = np.zeros((len(shared), x.shape[1]))
        np.add.at(total, at, x[keep] - centre[m])
        means[m] = total / counts[m][:, None]
    weight = np.minimum(counts[a], counts[b])
    cross = (means[a] * (weight / weight.sum())[:, None]).T @ means[b]
    whiten = {}
    for m, (x, _) in sides.items():
        values, basis = np.linalg.eigh(np.cov(x.T, bias=True))
        values = values.clip(0) + shrinkage * max(values.mean(), 1e-12)
        whiten[m] = basis @ np.diag(values**-0.5) @ basis.T
    both = whiten[a] @ cross @ whiten[b]
    # Singular vectors from the eigenvectors of the symmetric product: LAPACK's SVD did not converge on a rank-deficient matrix.
    squares, u = np.linalg.eigh(both @ both.T)
    s = np.sqrt(squares.clip(0))[::-1][:MAX_RANK]
    s = s[s > 1e-6 * s[0]] if s[0] > 0 else s[:1] + 1
    u = u[:, ::-1][:, : len(s)]
    maps = {a: whiten[a] @ u * np.sqrt(s), b: whiten[b] @ (both.T @ u) / np.sqrt(s)}
    return LinearHead(centre, maps, blend)


def _evaluate(vectors: Vectors, pair: tuple[str, str], metric: str) -> Direction | None:
    """Evaluate the direction of `pair` with per-query values; None if no query has a relevant candidate."""
    ks = with_cutoffs((), [metric]) or [10]
    result = evaluate_vectors(vectors, ks=ks, metrics=[metric], pairs=[pair], per_query=True)
    return result.directions.get("->".join(pair))


def split_rows(
    vectors: Vectors, by_cluster: bool, share: float, seed: int
) -> tuple[dict[str, Embeddings], dict[str, Embeddings]]:
    """Split the rows at random into (a `share` of them, the others). by_cluster: do not split clusters."""
    cluster = row_clusters(vectors)
    ids = sorted(cluster)
    keys = sorted(set(cluster.values())) if by_cluster else ids
    order = np.random.default_rng(seed).permutation(len(keys))
    first = {keys[i] for i in order[: round(share * len(keys))]}
    parts: tuple[dict[str, Embeddings], dict[str, Embeddings]] = ({}, {})
    for m, e in vectors.items():
        mask = np.array([(cluster[r] if by_cluster else r) in first for r in e.ids], bool)
        parts[0][m], parts[1][m] = take_rows(e, np.flatnonzero(mask)), take_rows(e, np.flatnonzero(~mask))
    return parts


def best_head(vectors: Vectors, pair: tuple[str, str], metric: str, by_cluster: bool, seed: int) -> LinearHead:
    """Choose shrinkage and blend on a quarter of `vectors`, then fit the head on all of them."""
    inner, test = split_rows(vectors, by_cluster, 0.75, seed)
    scores: dict[tuple[float, float], float] = {}
    for shrinkage in SHRINKAGES:
        head = fit_head(inner, pair, shrinkage, 0.0)
        for blend in BLENDS:
            direction = _evaluate(LinearHead(head.centre, head.map, blend).apply(test), pair, metric)
            scores[shrinkage, blend] = direction.metrics[metric] if direction else 0.0
    shrinkage, blend = max(scores, key=lambda k: (scores[k], -k[1], k[0]))  # among equals the one that changes the space least
    return fit_head(vectors, pair, shrinkage, blend)


def probe(vectors: Vectors, pair: tuple[str, str], metric: str = "ndcg@10", seed: int = 0) -> Probe:
    """Measure the gain of a head by two-fold cross-validation: each half is evaluated with the head fitted on the other half.

    If groups are small (median below SEEN_GROUPS), whole clusters of rows are held out. Raises DataError if a half has no query
    with a relevant candidate.
    """
    vectors = {m: vectors[m] for m in dict.fromkeys(pair)}
    _, counts = np.unique(group_labels(vectors[pair[1]]), return_counts=True)
    held_out_groups = float(np.median(counts)) < SEEN_GROUPS
    halves = split_rows(vectors, held_out_groups, 0.5, seed)
    pairs: list[DirectionPair] = []
    curve: dict[float, list[float]] = {share: [] for share in SHARES}
    for n, (train, test) in enumerate(((halves[0], halves[1]), (halves[1], halves[0]))):
        base = _evaluate(test, pair, metric)
        if base is None or min(len(train[m].ids) for m in pair) < 8:
            raise DataError("too few rows with a relevant candidate to hold half of them out; label more rows first")
        for share in SHARES:
            some = train if share == 1 else split_rows(train, held_out_groups, share, seed + 10 + n)[0]
            enough = min(len(some[m].ids) for m in pair) >= 4
            head = best_head(some, pair, metric, held_out_groups, seed + 20 + n) if enough else None
            with_head = _evaluate(head.apply(test), pair, metric) if head else base
            assert with_head is not None  # the head keeps the rows, so there are relevant candidates as for the base
            curve[share].append(with_head.metrics[metric])
            if share == 1:
                pairs.append(DirectionPair(base, with_head))
    change = paired_differences(pairs, [metric])[metric]
    means = [(share, float(np.mean(values))) for share, values in curve.items()]
    return Probe(change, means, held_out_groups, len(vectors[pair[1]].ids))
