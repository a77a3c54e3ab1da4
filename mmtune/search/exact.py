"""Exact nearest neighbours of a few queries, in the total order (see `mmtune.search.tie_order`)."""

import numpy as np

from mmtune.search.exact_scores import pair_keys
from mmtune.search.faiss_library import faiss_installed, import_faiss
from mmtune.search.tie_order import GRID, sort_words, to_scores
from mmtune.search.vectors import ROWS_PER_BLOCK


def topk(
    q_QD: np.ndarray, d_ND: np.ndarray, k: int, *, order: np.ndarray | None = None, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top `k` of unit vectors: (scores [Q, k] float32, positions in d [Q, k] int64), in the total order.

    `order` [N]: positions of the candidates in the order that ties fall (`tie_order(ids)`); default: as they lie.
    With fewer than k candidates, k shrinks to their number. A float32 search (faiss when installed) proposes, its error
    bound says how far it must look, and the proposals are scored again exactly: the answer is that of the full matrix.
    """
    k = min(k, len(d_ND))
    q_QD, d_ND = np.ascontiguousarray(q_QD, np.float32), np.ascontiguousarray(d_ND, np.float32)
    place = None
    if order is not None:
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
    scores, index = np.empty((len(q_QD), k), np.float32), np.empty((len(q_QD), k), np.int64)
    if k == 0:
        return scores, index
    for start in range(0, len(q_QD), chunk):
        rows = slice(start, min(start + chunk, len(q_QD)))
        scores[rows], index[rows] = _topk_chunk(q_QD[rows], d_ND, k, place)
    return scores, index


def _topk_chunk(q_QD: np.ndarray, d_ND: np.ndarray, k: int, place: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`topk` of one chunk: propose w > k by float32, settle what the error bound allows, look wider for the rest."""
    scores, index = np.empty((len(q_QD), k), np.float32), np.empty((len(q_QD), k), np.int64)
    todo, width = np.arange(len(q_QD)), min(len(d_ND), k + max(16, k // 4))
    # float32 sums: |error| <= (D + 2) 2**-24 |q||d| in any order; plus half a grid step, on both of two scores
    slack = 2 * ((q_QD.shape[1] + 2) * 2.0**-24 * 1.001 + 0.5 / GRID)
    while len(todo):
        approx, found = _propose(q_QD[todo], d_ND, width)
        keys = pair_keys(q_QD, d_ND, np.repeat(todo, width), found.ravel()).reshape(found.shape)
        tie = found if place is None else place[found]
        best = np.argsort(sort_words(keys, tie), axis=1)[:, :k]
        keys, found = np.take_along_axis(keys, best, 1), np.take_along_axis(found, best, 1)
        # whatever was not proposed scores at most approx[:, -1] + error; settled when the k-th beats that for sure
        settled = approx[:, -1] < keys[:, -1] / GRID - slack if width < len(d_ND) else np.ones(len(todo), bool)
        scores[todo[settled]], index[todo[settled]] = to_scores(keys[settled]), found[settled]
        todo, width = todo[~settled], min(len(d_ND), width * 4)
    return scores, index


def _propose(q_QD: np.ndarray, d_ND: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The `width` best by plain float32 sums: (scores descending, positions)."""
    if faiss_installed() and width <= 2048 and width < len(d_ND):
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
