"""Measure the quality of a version's index: its recall against exact search, and the latency of searches."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Signal
from mmtune.errors import DataError, StoreUnavailable
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order

if TYPE_CHECKING:
    from mmtune.index.open_version import OpenVersion
    from mmtune.index.stores import Store

CHUNK = 65_536
"""Stored vectors that are read at once."""
WARM_UP = 2
"""Number of warm-up queries: the first queries are run once more beforehand, and these runs are not timed."""
SCORE_TOLERANCE = 1e-6
"""Scores that differ by no more than this count as equal."""


def index_recall(store: "Store", query_QD: np.ndarray, k: int = 10) -> float:
    """Measure the mean recall@k of the index against exact search over all stored vectors.

    Every returned item whose score is at least the exact k-th best score counts as a hit, so ties count as hits.
    """
    ids = store.ids()
    ids = [ids[i] for i in tie_order(ids)]
    k = min(k, len(ids))
    if not k or not len(query_QD):
        return 1.0
    best_Qk = np.full((len(query_QD), 0), -2.0, np.float32)
    for start in range(0, len(ids), CHUNK):
        scores, _ = topk(query_QD, stored_vectors(store, ids[start : start + CHUNK]), k)
        best_Qk = -np.sort(-np.concatenate([best_Qk, scores], 1), axis=1)[:, :k]
    shares = []
    for query_D, exact_k in zip(query_QD, best_Qk, strict=True):
        scores = np.array([hit.score for hit in store.search(query_D[None], k)[0]])
        shares.append(int((scores >= exact_k[-1] - SCORE_TOLERANCE).sum()) / k)
    return float(np.mean(shares))


def stored_vectors(store: "Store", ids: Sequence[str]) -> np.ndarray:
    """Return the vectors [N, D] of those ids that the store still has: a writer may delete items meanwhile."""
    try:
        return store.fetch(ids)
    except StoreUnavailable:
        raise
    except DataError:
        present = set(store.ids())
        return store.fetch([i for i in ids if i in present])


def search_latencies(
    versions: Sequence["OpenVersion"], queries: Sequence[tuple[str, Signal]], k: int = 10
) -> list[dict[str, float]]:
    """Measure the search latency of versions in milliseconds. Returns {"p50", "p95"} per version; {} when there are no queries.

    A search includes encoding the query (without the cache), but not decoding it. Each query is run on all versions before the
    next query, so that all versions are measured under the same load.

    queries: (modality, value) pairs.
    """
    from mmtune.index.query_content import decode_query
    from mmtune.model.encode import decoded, encode_batches
    from mmtune.model.prompts import QUERY

    latencies_ms: list[list[float]] = [[] for _ in versions]
    for number, (name, value) in enumerate([*queries[:WARM_UP], *queries]):
        signal = decode_query(name, value).signal
        for latencies, version in zip(latencies_ms, versions, strict=True):
            begin = time.perf_counter()
            query_QD = next(iter(encode_batches(version.model, name, decoded([signal]), 1, lambda n: None, QUERY)))
            version.search(query_QD, k)
            if number >= WARM_UP:
                latencies.append(1000 * (time.perf_counter() - begin))
    return [{"p50": float(np.median(t)), "p95": float(np.quantile(t, 0.95))} if t else {} for t in latencies_ms]
