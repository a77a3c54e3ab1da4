"""Probe the recall of a version: search with known vectors, and compare with exact search and with the expected answers.

The queries are the version's canaries, embedded again by its model, and stored items chosen at random. The exact results come from the
cached embeddings (`vector_cache`), which have checksums and are no part of the store. So a store that lost rows, whose vectors changed,
or whose index is damaged gives a recall below its usual one, even if it answers without an error.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, now
from mmtune.index.collection_results import CollectionResult
from mmtune.index.item_catalog import Catalog, Item, labels_of
from mmtune.index.monitoring.intervals import wilson_interval
from mmtune.index.open_version import OpenVersion
from mmtune.index.release.canaries import verify_canaries
from mmtune.index.release.index_quality import SCORE_TOLERANCE
from mmtune.index.vector_cache import VectorCache
from mmtune.index.version_pool import VersionPool
from mmtune.search.exact import topk

ITEMS = 200
"""Stored items that are searched for."""
CHUNK = 65_536
"""Vectors that are compared at once."""
MIN_RECALL = 0.95
"""Recall below which an index is not good enough, as at a promotion."""
LEVEL = 0.01


@dataclass(frozen=True, eq=False)
class IndexProbe(CollectionResult):
    """The recall of one index.

    recall: mean share of the k exact results that the index found, over all queries; low, high: its 99% confidence interval
    found: how many of the `expected` items were among the results of a search with their own vector
    ok: whether the recall can be as high as MIN_RECALL, and no more than chance would explain were not found
    """

    queries: int
    recall: float
    low: float
    high: float
    found: int
    expected: int
    ok: bool


@dataclass(frozen=True, eq=False)
class ProbeResult(CollectionResult):
    """One probe of a version. indexes: {modality: its recall}. fault: why the probe could not be finished."""

    at: str
    version: str
    k: int
    seconds: float
    indexes: Mapping[str, IndexProbe] = field(default_factory=dict)
    fault: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the version finds what exact search finds."""
        return self.fault is None and all(index.ok for index in self.indexes.values())

    @property
    def reason(self) -> str:
        """What is wrong, in one line; "" if nothing is."""
        if self.fault is not None:
            return self.fault
        return "; ".join(
            f"the {m} index finds {i.recall:.3f} of what exact search finds ({i.low:.3f} to {i.high:.3f}), and {i.found} of "
            f"{i.expected} items by their own vector"
            for m, i in self.indexes.items()
            if not i.ok
        )


def probe(layout: CollectionLayout, catalog: Catalog, pool: VersionPool, k: int = 10, seed: int | None = None) -> ProbeResult:
    """Probe the live version. Never raises an error of the version: it becomes the result's `fault`.

    k: number of results of each search
    seed: of the random choice of items; default: another one each time

    Raises DataError if no version is live.
    """
    version = layout.live()["version"]
    if version is None:
        raise DataError(f"{layout.path}: no version is live; promote one with `mmtune index promote`")
    begin, at = time.perf_counter(), now()
    try:
        indexes = probe_version(layout, catalog, pool, version, k, seed)
        if not all(i.ok for i in indexes.values()):  # an item that was changed meanwhile also counts as not found
            indexes = probe_version(layout, catalog, pool, version, k, seed)
    except Exception as e:  # damaged files can make libraries raise anything
        return ProbeResult(at, version, k, time.perf_counter() - begin, fault=str(e) or type(e).__name__)
    return ProbeResult(at, version, k, time.perf_counter() - begin, indexes)


def probe_version(
    layout: CollectionLayout, catalog: Catalog, pool: VersionPool, version: str, k: int, seed: int | None
) -> dict[str, IndexProbe]:
    """Measure every index of a version."""
    opened = pool.open(version)
    canaries = verify_canaries(opened.model, layout.directory(version) / "canaries.safetensors")
    cache, applied = pool.vector_cache(opened.fingerprint, opened.dim), layout.applied_seq(version)
    rng, out = np.random.default_rng(seed), dict[str, IndexProbe]()
    for name in opened.stores:
        items = _random_items(catalog, name, applied, rng)
        own = [(items, _vectors(opened, name, cache, items))] if items else []
        if name in canaries:
            labels, vectors = canaries[name]
            known = _items_by_label(catalog, name, labels, applied)
            rows = [n for n, label in enumerate(labels.tolist()) if label in known]
            if rows:
                own.append(([known[int(labels[n])] for n in rows], vectors[rows]))
        others = [vectors for m, (_, vectors) in canaries.items() if m != name and len(vectors)]
        if own or others:
            out[name] = _probe_index(opened, name, catalog, cache, applied, k, own, others)
    return out


def _probe_index(
    opened: OpenVersion,
    name: str,
    catalog: Catalog,
    cache: VectorCache,
    applied: int,
    k: int,
    own: Sequence[tuple[Sequence[Item], np.ndarray]],
    others: Sequence[np.ndarray],
) -> IndexProbe:
    """Measure one index.

    own: items and their vectors, with which the items themselves must be found
    others: further query vectors
    """
    query_QD = np.ascontiguousarray(np.concatenate([*(v for _, v in own), *others]), np.float32)
    exact_Qk = _exact_scores(opened, name, catalog, cache, applied, query_QD, k)
    k = exact_Qk.shape[1]
    found_Q = opened.stores[name].search(query_QD, k)
    known = catalog.items(list({hit.id for hits in found_Q for hit in hits}))
    having = [i for i in known.values() if name in i.contents]
    vector_of = dict(zip((i.id for i in having), _vectors(opened, name, cache, having), strict=True))
    shares, best = list[float](), list[float]()
    for query_D, exact_k, hits in zip(query_QD, exact_Qk, found_Q, strict=True):
        # the true scores, which a store with other vectors does not know; an id that is in no catalog is a wrong result
        scores = np.array([vector_of[id] @ query_D for id in dict.fromkeys(h.id for h in hits) if id in vector_of])
        shares.append(min(k, int((scores >= exact_k[-1] - 10 * SCORE_TOLERANCE).sum())) / k if k else 1.0)
        best.append(float(scores.max()) if len(scores) else -1.0)
    expected = sum(len(items) for items, _ in own)
    own_best = zip(best[:expected], exact_Qk[:expected], strict=True)
    found = sum(bool(b >= e[0] - 10 * SCORE_TOLERANCE) for b, e in own_best) if k else 0
    recall = float(np.mean(shares))
    low, high = wilson_interval(recall, len(query_QD), LEVEL)
    lost = bool(expected) and wilson_interval(found / expected, expected, LEVEL)[1] < MIN_RECALL
    return IndexProbe(len(query_QD), recall, low, high, found, expected, high >= MIN_RECALL and not lost)


def _exact_scores(
    opened: OpenVersion, name: str, catalog: Catalog, cache: VectorCache, applied: int, query_QD: np.ndarray, k: int
) -> np.ndarray:
    """Return the k best scores [Q, k] by exact search over all items that have the modality, best first."""
    best_Qk = np.full((len(query_QD), 0), -2.0, np.float32)
    waiting: list[Item] = []

    def compare() -> None:
        nonlocal best_Qk
        scores, _ = topk(query_QD, _vectors(opened, name, cache, waiting), k)
        best_Qk = -np.sort(-np.concatenate([best_Qk, scores], 1), axis=1)[:, :k]
        waiting.clear()

    for items in catalog.changed(0, applied):
        waiting += [i for i in items if name in i.contents]
        if len(waiting) >= CHUNK:
            compare()
    if waiting:
        compare()
    return best_Qk


def _vectors(opened: OpenVersion, name: str, cache: VectorCache, items: Sequence[Item]) -> np.ndarray:
    """Return the embeddings of items [N, D] from the cache; those that are not in it from the store."""
    out, labels = np.empty((len(items), opened.dim), np.float32), labels_of(items, name)
    known = cache.intact(name, labels) if len(items) else np.zeros(0, bool)
    out[known] = cache.read(name, labels[known])
    if not known.all():
        out[~known] = opened.stores[name].fetch([i.id for i, has in zip(items, known.tolist(), strict=True) if not has])
    return out


def _random_items(catalog: Catalog, name: str, applied: int, rng: np.random.Generator) -> list[Item]:
    """Return up to ITEMS items that have the modality: those whose content hashes follow a random one."""
    query = "select c.id from content c join items i on i.id = c.id where c.modality = ? and i.seq <= ? and c.label {} ? "
    start, ids = int(rng.integers(-(2**63), 2**63 - 1)), list[str]()
    for comparison in (">=", "<"):
        rows = catalog.connection().execute(
            query.format(comparison) + "order by c.label limit ?", (name, applied, start, ITEMS)
        )
        ids += [r[0] for r in rows]
    return list(catalog.items(ids[:ITEMS]).values())


def _items_by_label(catalog: Catalog, name: str, labels: np.ndarray, applied: int) -> dict[int, Item]:
    """Return {content hash: an item that has this content}, of the items that exist."""
    marks = ",".join("?" * len(labels))
    query = f"select c.label, c.id from content c join items i on i.id = c.id where c.modality = ? and i.seq <= ? and c.label in ({marks})"
    rows = catalog.connection().execute(query, (name, applied, *map(int, labels))).fetchall()
    items = catalog.items([id for _, id in rows])
    return {label: items[id] for label, id in rows if id in items}
