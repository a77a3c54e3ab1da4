"""Exact nearest neighbours in the total order (see `mmtune.search.tie_order`): `topk`.

Two methods give the same result. For few queries, a plain float32 search proposes candidates, which are scored again exactly.
For many queries, the blocked scan of `ExactSearch` is faster, although it has to prepare all candidates first. Times on two
cores with VNNI instructions, first method against second: the best 10 of 200,000 x 512 candidates for one query, 0.03 s against
2.6 s; the best 50 of 100,000 x 256 candidates for 10,000 queries, 5.8 s against 3.1 s.
"""

import numpy as np

from mmtune.search.exact_scores import pair_keys
from mmtune.search.faiss_library import faiss_installed, import_faiss
from mmtune.search.parallel import ordered_map, worker_count
from mmtune.search.tie_order import GRID, sort_words, to_scores
from mmtune.search.vectors import ROWS_PER_BLOCK, GatheredRows

MANY_QUERIES = 4096
MANY_CANDIDATES = 16_384
"""The blocked scan is used from this number of queries and this number of candidates on."""
FAISS_WIDTH = 2048
"""Largest number of results per query for which faiss' flat search is used; beyond it, it is slow."""


def topk(
    q_QD: np.ndarray, d_ND: np.ndarray, k: int, *, order: np.ndarray | None = None, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top `k` of L2-normalised vectors: (scores float32 [Q, k], positions in d int64 [Q, k]), in the total order.

    order: int64 [N], positions in d; of candidates with equal scores, the one that comes first in `order` ranks first. Pass
        `tie_order(ids)` to order ties by id. Default: by position.
    chunk: number of queries searched at a time

    If d has fewer than k candidates, the results have one column per candidate.
    """
    k = min(k, len(d_ND))
    q_QD, d_ND = np.ascontiguousarray(q_QD, np.float32), np.ascontiguousarray(d_ND, np.float32)
    scores, index = np.empty((len(q_QD), k), np.float32), np.empty((len(q_QD), k), np.int64)
    if k == 0:
        return scores, index
    if len(q_QD) >= MANY_QUERIES and len(d_ND) >= MANY_CANDIDATES:
        return _prepared(q_QD, d_ND, k, order)
    position = None
    if order is not None:
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
    for start in range(0, len(q_QD), chunk):
        rows = slice(start, min(start + chunk, len(q_QD)))
        scores[rows], index[rows] = _proposed(q_QD[rows], d_ND, k, position)
    return scores, index


def _prepared(q_QD: np.ndarray, d_ND: np.ndarray, k: int, order: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Compute `topk` by the blocked scan."""
    from mmtune.search.blocked import ExactSearch  # imports torch

    search = ExactSearch(d_ND if order is None else GatheredRows(d_ND, order), k=k)
    blocks = [q_QD[start : start + search.block] for start in range(0, len(q_QD), search.block)]
    parts = list(ordered_map(search.top, blocks, worker_count()))
    index, keys = (np.concatenate(x) for x in zip(*parts, strict=True))
    return to_scores(keys), index if order is None else order[index]


def _proposed(q_QD: np.ndarray, d_ND: np.ndarray, k: int, position: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Compute `topk` for one chunk of queries: float32 scores propose more than k candidates, exact keys order them.

    If a candidate that was not proposed could still beat a query's k-th result, the query is searched again with more
    proposals.
    """
    scores, index = np.empty((len(q_QD), k), np.float32), np.empty((len(q_QD), k), np.int64)
    todo, width = np.arange(len(q_QD)), min(len(d_ND), k + max(16, k // 4))
    # a float32 sum errs by at most (D + 2) 2**-24 |q||d| in any order; rounding to the grid adds half a step. Two scores: twice
    slack = 2 * ((q_QD.shape[1] + 2) * 2.0**-24 * 1.001 + 0.5 / GRID)
    while len(todo):
        approximate, proposed = _propose(q_QD[todo], d_ND, width)
        keys = pair_keys(q_QD, d_ND, np.repeat(todo, width), proposed.ravel()).reshape(proposed.shape)
        tie = proposed if position is None else position[proposed]
        best = np.argsort(sort_words(keys, tie), axis=1)[:, :k]
        keys, proposed = np.take_along_axis(keys, best, 1), np.take_along_axis(proposed, best, 1)
        # a candidate that was not proposed scores at most approximate[:, -1] + error
        settled = approximate[:, -1] < keys[:, -1] / GRID - slack if width < len(d_ND) else np.ones(len(todo), bool)
        scores[todo[settled]], index[todo[settled]] = to_scores(keys[settled]), proposed[settled]
        todo, width = todo[~settled], min(len(d_ND), width * 4)
    return scores, index


def _propose(q_QD: np.ndarray, d_ND: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `width` best candidates by plain float32 sums: (scores, positions) [Q, width], scores descending."""
    if faiss_installed() and width <= FAISS_WIDTH and width < len(d_ND):
        faiss = import_faiss()
        return faiss.knn(q_QD, d_ND, width, metric=faiss.METRIC_INNER_PRODUCT)
    best_s, best_i = np.empty((len(q_QD), 0), np.float32), np.empty((len(q_QD), 0), np.int64)
    step = max(ROWS_PER_BLOCK, width)
    for start in range(0, len(d_ND), step):
        s = q_QD @ d_ND[start : start + step].T
        i = np.broadcast_to(np.arange(start, start + s.shape[1]), s.shape)
        best_s, best_i = np.concatenate([best_s, s], 1), np.concatenate([best_i, i], 1)
        if best_s.shape[1] > width:
            keep = np.argpartition(best_s, best_s.shape[1] - width, axis=1)[:, -width:]
            best_s, best_i = np.take_along_axis(best_s, keep, 1), np.take_along_axis(best_i, keep, 1)
    down = np.argsort(-best_s, axis=1, kind="stable")
    return np.take_along_axis(best_s, down, 1), np.take_along_axis(best_i, down, 1)
