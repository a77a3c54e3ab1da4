"""Cosines that do not depend on how they were computed, exact top-k, and one total order for ties.

A score is the cosine of two unit vectors, summed in float64 and rounded to the grid 2**-24 (its "key" is the integer
round(cosine * 2**24), clipped to [-2**24, 2**24]; every key is a float32 exactly). BLAS adds in an order that depends on
the block, so a sum that falls within its error bound of a rounding boundary is added again in one fixed order: keys never
depend on row order, block size, threads or library. The total order everywhere: score descending, ties by document id
DESCENDING, as trec_eval does. Callers bring candidates in descending id order (`tie_order`), then ties fall to the
smaller position.
"""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.errors import DataError

if TYPE_CHECKING:
    from typing import Protocol

    class Vectors(Protocol):
        """An array [N, D], or what gives its rows when asked for."""

        shape: Any

        def __len__(self) -> int: ...

        def __getitem__(self, key: Any, /) -> np.ndarray: ...


GRID = 2**24
BLOCK = 8192  # candidates a block: the float64 scores of one block stay near the cache


def tie_order(ids: Sequence[str]) -> np.ndarray:
    """Positions [N] of `ids` in descending order (by code point, which is the order of UTF-8 bytes that trec_eval uses)."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True), dtype=np.int64)


def unit(x_ND: np.ndarray, name: str = "vectors") -> np.ndarray:
    """float32 rows of length 1 (the same array when they already are; zero rows stay zero). DataError on NaN or infinity."""
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    norms = np.empty(len(x_ND))
    for start in range(0, len(x_ND), BLOCK):
        part = x_ND[start : start + BLOCK].astype(np.float64)
        norms[start : start + BLOCK] = np.sqrt((part * part).sum(1))
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise DataError(f"{name}: {len(bad)} of {len(norms)} vectors hold NaN or infinity, the first at position {bad[0]}")
    off = (np.abs(norms - 1) > 1e-4) & (norms > 0)
    if off.any():
        x_ND = (x_ND / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
    return x_ND


def _pairwise_keys(q_PD: np.ndarray, d_PD: np.ndarray) -> np.ndarray:
    """Keys [P] of P pairs, each summed in one fixed order."""
    sums = (q_PD.astype(np.float64) * d_PD.astype(np.float64)).sum(1)
    return np.rint(sums * GRID).clip(-GRID, GRID).astype(np.int32)


def pair_keys(q_QD: "Vectors", d_ND: "Vectors", i_P: np.ndarray, j_P: np.ndarray) -> np.ndarray:
    """Keys [P] (int32) of the pairs (q[i], d[j])."""
    out = np.empty(len(i_P), np.int32)
    for start in range(0, len(i_P), BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = _keys_checked(
            np.einsum("pd,pd->p", q_QD[i_P[part]].astype(np.float64), d_ND[j_P[part]].astype(np.float64)),
            q_QD,
            d_ND,
            lambda at, p=part: (i_P[p][at[0]], j_P[p][at[0]]),
        )
    return out


def _keys_checked(s: np.ndarray, q_QD: "Vectors", d_ND: "Vectors", where) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Round float64 sums `s` (destroyed) to keys; those too near a boundary are summed again in the fixed order."""
    s *= GRID
    keys = np.rint(s)
    np.subtract(s, keys, out=s)
    np.abs(s, out=s)
    # |sum - exact| <= D * 2**-53 * |q||d| for any order of summation (Higham 2002, 3.5); twice that, in grid units
    at = np.nonzero(s > 0.5 - 2 * (q_QD.shape[1] + 2) * 2.0**-53 * GRID)
    keys = keys.clip(-GRID, GRID).astype(np.int32)
    if len(at[0]):
        i, j = where(at)
        for start in range(0, len(i), BLOCK):
            part = slice(start, start + BLOCK)
            keys[tuple(a[part] for a in at)] = _pairwise_keys(q_QD[i[part]], d_ND[j[part]])
    return keys


def exact_keys(q_QD: np.ndarray, d_ND: "Vectors") -> np.ndarray:
    """Keys [Q, N] (int32) of every pair. Memory: 4 Q N bytes, plus one block of 8192 candidates in float64."""
    out = np.empty((len(q_QD), len(d_ND)), np.int32)
    q64 = q_QD.astype(np.float64)
    for start in range(0, len(d_ND), BLOCK):
        block = d_ND[start : start + BLOCK]
        out[:, start : start + BLOCK] = _keys_checked(q64 @ block.astype(np.float64).T, q_QD, block, lambda at: at)
    return out


def to_scores(keys: np.ndarray) -> np.ndarray:
    """Keys -> cosines, float32, exact."""
    return keys.astype(np.float32) / np.float32(GRID)


def ordered(keys_N: np.ndarray) -> np.ndarray:
    """Positions [N] by key descending, ties by position ascending (one SIMD sort of 64-bit words)."""
    packed = (GRID - keys_N.astype(np.int64)) << 32
    packed |= np.arange(len(keys_N))
    packed.sort()
    packed &= 0xFFFFFFFF
    return packed


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
        best = np.argsort(((GRID - keys.astype(np.int64)) << 32) | tie, axis=1)[:, :k]
        keys, found = np.take_along_axis(keys, best, 1), np.take_along_axis(found, best, 1)
        # whatever was not proposed scores at most approx[:, -1] + error; settled when the k-th beats that for sure
        settled = approx[:, -1] < keys[:, -1] / GRID - slack if width < len(d_ND) else np.ones(len(todo), bool)
        scores[todo[settled]], index[todo[settled]] = to_scores(keys[settled]), found[settled]
        todo, width = todo[~settled], min(len(d_ND), width * 4)
    return scores, index


def _propose(q_QD: np.ndarray, d_ND: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The `width` best by plain float32 sums: (scores descending, positions)."""
    if importlib.util.find_spec("faiss") is not None and width <= 2048 and width < len(d_ND):
        import faiss

        return faiss.knn(q_QD, d_ND, width, metric=faiss.METRIC_INNER_PRODUCT)
    best_s, best_i = np.empty((len(q_QD), 0), np.float32), np.empty((len(q_QD), 0), np.int64)
    step = max(BLOCK, width)
    for start in range(0, len(d_ND), step):
        s = q_QD @ d_ND[start : start + step].T
        i = np.broadcast_to(np.arange(start, start + s.shape[1]), s.shape)
        best_s, best_i = np.concatenate([best_s, s], 1), np.concatenate([best_i, i], 1)
        if best_s.shape[1] > width:
            keep = np.argpartition(best_s, best_s.shape[1] - width, axis=1)[:, -width:]
            best_s, best_i = np.take_along_axis(best_s, keep, 1), np.take_along_axis(best_i, keep, 1)
    down = np.argsort(-best_s, axis=1, kind="stable")
    return np.take_along_axis(best_s, down, 1), np.take_along_axis(best_i, down, 1)
