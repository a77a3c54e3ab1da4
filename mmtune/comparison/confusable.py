"""The confusable slice: queries whose relevant candidate has a very similar "twin", chosen once with the base model and saved.

An item's twin is the most similar item of another group, according to the base model's embeddings. Queries are not chosen by
how well the base retrieves their candidates: a slice of the base's own mistakes would favour every other model, by regression
to the mean.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmtune.comparison.bootstrap_intervals import bootstrap_intervals
from mmtune.comparison.gate import MEAN, Gate
from mmtune.comparison.paired_difference import Bootstrap, PairedDifference
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.clusters import clusters_by_value, row_clusters
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.judgments import Qrels
from mmtune.relevance.positives import relevant_blocks
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.format_number import check_format
from mmtune.search.exact_scores import exact_keys, pair_keys
from mmtune.search.tie_order import GRID

FORMAT = 1  # version of the JSON format that `Confusable.save` writes
CONFUSABLE, CONFUSABLE_PAIRS = "confusable", "confusable pairs"
"""Names of two slices: the confusable queries, and the accuracy on their (relevant candidate, twin) pairs."""

Vectors = Mapping[str, Embeddings]


@dataclass(frozen=True)
class Twins:
    """One confusable query.

    query, right, twin: row ids of the query, of its relevant candidate and of the candidate's twin
    similarity: cosine of the relevant candidate and its twin
    """

    query: str
    right: str
    twin: str
    similarity: float


@dataclass
class Confusable:
    """The frozen slice of one direction.

    fingerprint: of the base model
    share: share of all queries that were chosen, the most confusable ones
    """

    direction: str
    fingerprint: str
    share: float
    twins: list[Twins]

    @property
    def rows(self) -> frozenset[str]:
        """The row ids of the queries."""
        return frozenset(t.query for t in self.twins)

    def save(self, path: str | Path) -> None:
        """Write the slice as JSON."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def read(path: str | Path) -> "Confusable":
        """Read a saved slice. Raises DataError, which names the file, if it is not a confusable slice."""
        document = read_json(path)
        try:
            check_format(document.pop("format"), FORMAT, path, DataError)
            return Confusable(**{**document, "twins": [Twins(**t) for t in document["twins"]]})
        except (AttributeError, KeyError, TypeError):
            raise DataError(f"{path}: not a confusable slice (as written by `mmtune compare --confusable FILE`)") from None


def read_or_freeze(where: "bool | str | Path", base: Vectors, gate: Gate | None, qrels: Qrels | None) -> Confusable | None:
    """Return the confusable slice of a comparison, or None.

    where: False: no slice. True: make the slice without saving it, or return None if no two groups can be confused. A path:
        read the slice from this file; if there is no such file, make the slice and write it.

    The slice is made for the gate's direction, or else for the first direction between two modalities.
    """
    if where is False:
        return None
    if not isinstance(where, bool) and Path(where).exists():
        return Confusable.read(where)
    wanted = gate.direction if gate else MEAN
    pairs = [(a, b) for a in base for b in base if a != b or len(base) == 1]
    pair = next((p for p in pairs if "->".join(p) == wanted), pairs[0])
    try:
        frozen = freeze(base, pair, qrels=qrels)
    except DataError:
        if isinstance(where, bool):
            return None
        raise
    if not isinstance(where, bool):
        frozen.save(where)
    return frozen


def freeze(vectors: Vectors, pair: tuple[str, str], share: float = 0.25, qrels: Qrels | None = None) -> Confusable:
    """Choose the `share` of the queries of `pair` whose relevant candidate has the most similar twin.

    Raises DataError if no relevant candidate has a twin.
    """
    if not 0 < share <= 1:
        raise DataError(f"confusable share {share}: must be above 0 and at most 1")
    a, b = pair
    queries = unique_items(a, vectors[a])
    candidates = queries if a == b else unique_items(b, vectors[b])
    twin_N, key_N = _nearest_of_another_group(candidates)
    triples: list[tuple[int, int, int, int]] = []
    for part in relevant_blocks(queries, candidates, 4096, qrels):
        for i in range(part.start, part.stop):
            right = part.items[i - part.start]
            with_twin = right[(twin_N[right] >= 0) & ~np.isin(twin_N[right], right)]
            if len(with_twin):
                best = with_twin[np.argmax(key_N[with_twin])]  # among equals the first one, which has the greatest id
                triples.append((-int(key_N[best]), i, int(best), int(twin_N[best])))
    if not triples:
        raise DataError(
            f"{a}->{b}: no relevant candidate has a twin of another group; the confusable slice needs at least two groups"
        )
    chosen = sorted(triples)[: max(1, round(share * len(triples)))]
    twins = [Twins(queries.ids[q], candidates.ids[r], candidates.ids[t], -k / GRID) for k, q, r, t in chosen]
    return Confusable(f"{a}->{b}", vectors[a].fingerprint, share, twins)


def _nearest_of_another_group(items: Items, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar item of another group and row for each item: (nearest [N], key [N]).

    nearest: item number, or -1 if there is none
    key: integer key of the cosine (see `mmtune.search.exact_scores`)
    """
    near, best = np.full(len(items), -1), np.zeros(len(items), np.int64)
    for part in relevant_blocks(items, items, chunk):
        keys = exact_keys(items.vectors[part.start : part.stop], items.vectors)
        keys[np.repeat(np.arange(len(part.items)), part.items.counts), part.items.values] = -2 * GRID
        keys[np.arange(len(keys)), np.arange(part.start, part.stop)] = -2 * GRID
        at = keys.argmax(1)  # among equals the first one, which has the greatest id
        top = keys[np.arange(len(keys)), at]
        near[part.start : part.stop], best[part.start : part.stop] = np.where(top > -2 * GRID, at, -1), top
    return near, best


def accuracy(frozen: Confusable, vectors: Vectors) -> tuple[np.ndarray, list[str]]:
    """Compute (accuracy [P], query ids [P]) of the pairs whose rows are all in `vectors`.

    The accuracy is 1 if the relevant candidate scores higher than its twin, 0 if lower, and 0.5 if their scores are equal.
    """
    a, b = frozen.direction.split("->")
    for m in (a, b):
        if m not in vectors:
            raise DataError(f"the confusable slice is for {frozen.direction}, but there are no vectors of {m}")
    query_row = {row: i for i, row in enumerate(vectors[a].ids)}
    candidate_row = {row: i for i, row in enumerate(vectors[b].ids)}
    known = [t for t in frozen.twins if t.query in query_row and t.right in candidate_row and t.twin in candidate_row]
    if not known:
        raise DataError("no query of the confusable slice is in these data; make a new slice from these data")
    q = np.array([query_row[t.query] for t in known])
    right_key, twin_key = (
        pair_keys(vectors[a].query_vectors, vectors[b].vectors, q, np.array([candidate_row[getattr(t, w)] for t in known]))
        for w in ("right", "twin")
    )
    return (1 + np.sign(right_key.astype(np.int64) - twin_key)) / 2, [t.query for t in known]


def confusable_difference(
    frozen: Confusable,
    base: Vectors,
    candidate: Vectors,
    bootstrap: Bootstrap | None = None,
    source: Mapping[str, str | None] | None = None,
) -> PairedDifference:
    """Compute the paired difference of the accuracy on the frozen pairs. source: as for `compare_vectors`."""
    bootstrap = bootstrap or Bootstrap()
    (before, queries), (after, _) = accuracy(frozen, base), accuracy(frozen, candidate)
    if source is not None:
        clusters = clusters_by_value([[q] for q in queries], source)
    else:
        cluster_of = row_clusters(base)
        clusters = np.array([cluster_of[q] for q in queries])
    delta = after - before
    low, high = bootstrap_intervals([(delta[:, None], clusters)], bootstrap.level, bootstrap.resamples, bootstrap.seed)
    return PairedDifference(
        base=float(before.mean()),
        candidate=float(after.mean()),
        difference=float(delta.mean()),
        interval=(float(low[0]), float(high[0])),
        wins=int((delta > 0).sum()),
        losses=int((delta < 0).sum()),
        queries=len(delta),
        clusters=len(np.unique(clusters)),
    )
