"""Compute cosines that are the same for any row order, block size, number of threads and BLAS library.

A score is the cosine of two L2-normalised vectors, summed in float64 and rounded to a multiple of 2**-24. Its "key" is the
integer round(cosine * 2**24), clipped to [-2**24, 2**24]. Every key can be represented exactly as float32. BLAS libraries add
numbers in an order that depends on the block. So if a sum is so close to a rounding boundary that the order of addition could
change its key, the sum is computed again in one fixed order.
"""

from collections.abc import Callable

import numpy as np

from mmtune.search.tie_order import GRID
from mmtune.search.vectors import ROWS_PER_BLOCK, Vectors

PAIR_BLOCK_NUMBERS = 2**18
"""Vector elements per block of pairs, so that the float64 copies fit into the processor's cache."""

PairsAt = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def exact_keys(q_QD: np.ndarray, d_ND: Vectors) -> np.ndarray:
    """int32 [Q, N]: the keys of all pairs. Uses 4 Q N bytes, plus one block of candidates in float64."""
    out = np.empty((len(q_QD), len(d_ND)), np.int32)
    q64 = q_QD.astype(np.float64)
    for start in range(0, len(d_ND), ROWS_PER_BLOCK):
        block = d_ND[start : start + ROWS_PER_BLOCK]
        sums = q64 @ block.astype(np.float64).T

        def pairs_at(flat: np.ndarray, width: int = len(block), start: int = start) -> tuple[np.ndarray, np.ndarray]:
            row, column = np.divmod(flat, width)
            return row, column + start

        keys = _round_to_grid(sums.ravel(), q_QD, d_ND, pairs_at)
        out[:, start : start + ROWS_PER_BLOCK] = keys.reshape(sums.shape)
    return out


def pair_keys(q_QD: Vectors, d_ND: Vectors, i_P: np.ndarray, j_P: np.ndarray) -> np.ndarray:
    """int32 [P]: the keys of the pairs (q[i], d[j])."""
    out = np.empty(len(i_P), np.int32)
    step = max(64, PAIR_BLOCK_NUMBERS // max(1, q_QD.shape[1]))
    for start in range(0, len(i_P), step):
        part = slice(start, start + step)
        sums = np.einsum("pd,pd->p", q_QD[i_P[part]].astype(np.float64), d_ND[j_P[part]].astype(np.float64))

        def pairs_at(flat: np.ndarray, part: slice = part) -> tuple[np.ndarray, np.ndarray]:
            return i_P[part][flat], j_P[part][flat]

        out[part] = _round_to_grid(sums, q_QD, d_ND, pairs_at)
    return out


def _round_to_grid(sums: np.ndarray, q_QD: Vectors, d_ND: Vectors, pairs_at: PairsAt) -> np.ndarray:
    """Round float64 `sums` (overwritten) to int32 keys; sums too near a rounding boundary are recomputed in the fixed order.

    pairs_at: function that maps positions in `sums` to the (queries, candidates) of these pairs
    """
    sums *= GRID
    keys = np.rint(sums)
    np.subtract(sums, keys, out=sums)
    np.abs(sums, out=sums)
    # |sum - exact| <= D * 2**-53 * |q||d| for any order of summation (Higham 2002, 3.5); twice that, in grid steps
    doubtful = np.flatnonzero(sums > 0.5 - 2 * (q_QD.shape[1] + 2) * 2.0**-53 * GRID)
    keys = keys.clip(-GRID, GRID).astype(np.int32)
    for start in range(0, len(doubtful), ROWS_PER_BLOCK):
        at = doubtful[start : start + ROWS_PER_BLOCK]
        i, j = pairs_at(at)
        keys[at] = _fixed_order_keys(q_QD[i], d_ND[j])
    return keys


def _fixed_order_keys(q_PD: np.ndarray, d_PD: np.ndarray) -> np.ndarray:
    """int32 [P]: the keys of P pairs, each sum computed in one fixed order."""
    sums = (q_PD.astype(np.float64) * d_PD.astype(np.float64)).sum(1)
    return np.rint(sums * GRID).clip(-GRID, GRID).astype(np.int32)
