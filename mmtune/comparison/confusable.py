"""The confusable slice: queries whose right answer has a near twin, frozen once from the base model and kept by id.

The twin of an item is the most similar item of another thing in the base's own space of items. Queries are not chosen by
how the base answers them: a slice of the base's own mistakes flatters every other model (regression to the mean).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.relevance.items import Items, unite
from mmtune.relevance.relevant import Qrels, relevant
from mmtune.runtime.files import read_json, write_json
from mmtune.search.exact import GRID, exact_keys, pair_keys

FORMAT = 1


@dataclass(frozen=True)
class Twins:
    """One confusable query: row ids of the query, its right answer and the twin; their similarity in the base."""

    query: str
    right: str
    twin: str
    similarity: float


@dataclass
class Confusable:
    """The frozen slice of one direction. fingerprint: the base that chose it; share: of the queries, the most confusable."""

    direction: str
    fingerprint: str
    share: float
    twins: list[Twins]

    @property
    def rows(self) -> frozenset[str]:
        """The slice as row ids."""
        return frozenset(t.query for t in self.twins)

    def save(self, path: str | Path) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def read(path: str | Path) -> "Confusable":
        """Raises DataError naming the file when it is no confusable slice."""
        found = read_json(path)
        try:
            if found.pop("format") != FORMAT:
                raise DataError(f"{path}: a confusable slice of another format; freeze it again with this mmtune")
            return Confusable(**{**found, "twins": [Twins(**t) for t in found["twins"]]})
        except (AttributeError, KeyError, TypeError):
            raise DataError(f"{path}: not a confusable slice (as written by `mmtune compare --confusable FILE`)") from None


def freeze(
    vectors: Mapping[str, Embeddings], pair: tuple[str, str], share: float = 0.25, qrels: Qrels | None = None
) -> Confusable:
    """The `share` of the queries of `pair` whose right answer has the most similar twin. Raises DataError when none has one."""
    if not 0 < share <= 1:
        raise DataError(f"confusable share {share}: a number in (0, 1]")
    a, b = pair
    queries = unite(a, vectors[a])
    candidates = queries if a == b else unite(b, vectors[b])
    near, key = _nearest_other(candidates)
    found: list[tuple[int, int, int, int]] = []
    for part in relevant(queries, candidates, 4096, qrels):
        for i in range(part.start, part.stop):
            right = part.items[i - part.start]
            good = right[(near[right] >= 0) & ~np.isin(near[right], right)]
            if len(good):
                best = good[np.argmax(key[good])]  # the first of equals, which has the greatest id
                found.append((-int(key[best]), i, int(best), int(near[best])))
    if not found:
        raise DataError(
            f"{a}->{b}: no right answer has a twin of another group; the confusable slice needs two groups at least"
        )
    chosen = sorted(found)[: max(1, round(share * len(found)))]
    twins = [Twins(queries.ids[q], candidates.ids[r], candidates.ids[t], -k / GRID) for k, q, r, t in chosen]
    return Confusable(f"{a}->{b}", vectors[a].fingerprint, share, twins)


def _nearest_other(items: Items, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """For each item the most similar one that shares neither group nor row, or -1; and the key of that similarity."""
    near, best = np.full(len(items), -1), np.zeros(len(items), np.int64)
    for part in relevant(items, items, chunk):
        keys = exact_keys(items.vectors[part.start : part.stop], items.vectors)
        keys[np.repeat(np.arange(len(part.items)), part.items.counts), part.items.values] = -2 * GRID
        keys[np.arange(len(keys)), np.arange(part.start, part.stop)] = -2 * GRID
        at = keys.argmax(1)  # ties: the first, which has the greatest id
        top = keys[np.arange(len(keys)), at]
        near[part.start : part.stop], best[part.start : part.stop] = np.where(top > -2 * GRID, at, -1), top
    return near, best


def accuracy(frozen: Confusable, vectors: Mapping[str, Embeddings]) -> tuple[np.ndarray, list[str]]:
    """Per twin pair whose rows are all there: 1 right answer above its twin, 0 below, 0.5 the same score; and the query ids."""
    a, b = frozen.direction.split("->")
    for m in (a, b):
        if m not in vectors:
            raise DataError(f"the confusable slice is of {frozen.direction}; there are no vectors of {m}")
    left = {row: i for i, row in enumerate(vectors[a].ids)}
    right = {row: i for i, row in enumerate(vectors[b].ids)}
    known = [t for t in frozen.twins if t.query in left and t.right in right and t.twin in right]
    if not known:
        raise DataError("no query of the confusable slice is in these data; it was frozen from others: freeze it anew")
    q = np.array([left[t.query] for t in known])
    keys = [
        pair_keys(vectors[a].query_vectors, vectors[b].vectors, q, np.array([right[getattr(t, w)] for t in known]))
        for w in ("right", "twin")
    ]
    return (1 + np.sign(keys[0].astype(np.int64) - keys[1])) / 2, [t.query for t in known]
