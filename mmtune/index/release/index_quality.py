"""What a version's index loses against exact search, and how long its searches take."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order

if TYPE_CHECKING:
    from mmtune.index.open_version import OpenVersion
    from mmtune.index.protocols import Store

CHUNK = 65_536


def recall(store: "Store", query_QD: np.ndarray, k: int = 10) -> float:
    """Mean share of the exact k best that the index finds, against `similarity.topk` over all stored vectors; an item that
    ties with the k-th counts as found right."""
    ids = store.ids()
    ids = [ids[i] for i in tie_order(ids)]
    k = min(k, len(ids))
    if not k or not len(query_QD):
        return 1.0
    best = np.full((len(query_QD), 0), -2.0, np.float32)
    for start in range(0, len(ids), CHUNK):
        scores, _ = topk(query_QD, store.fetch(ids[start : start + CHUNK]), k)
        best = -np.sort(-np.concatenate([best, scores], 1), axis=1)[:, :k]
    hits = []
    for q, exact in zip(query_QD, best, strict=True):
        found = np.array([h.score for h in store.search(q[None], k)[0]])
        hits.append(int((found >= exact[-1] - 1e-6).sum()) / k)
    return float(np.mean(hits))


def latencies(versions: Sequence["OpenVersion"], queries: Sequence[tuple[str, Any]], k: int = 10) -> list[dict[str, float]]:
    """{"p50", "p95"} milliseconds of one search (encoding and index) a version, each query asked of each in turn.

    queries: (modality, signal or bytes); the cache of query vectors is passed by.
    """
    from mmtune.index.open_version import decode_query
    from mmtune.model.encode import decoded, encode_batches
    from mmtune.model.prompts import QUERY

    taken: list[list[float]] = [[] for _ in versions]
    for number, (name, value) in enumerate([*queries[:2], *queries]):  # the first are thrown away
        signal = decode_query(name, value).signal
        for times, opened in zip(taken, versions, strict=True):
            begin = time.perf_counter()
            query = next(iter(encode_batches(opened.model, name, decoded([signal]), 1, lambda n: None, QUERY)))
            opened.search(query, k)
            if number >= 2:
                times.append(1000 * (time.perf_counter() - begin))
    return [{"p50": float(np.median(t)), "p95": float(np.quantile(t, 0.95))} if t else {} for t in taken]
