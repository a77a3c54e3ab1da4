"""Compute ranks among many candidates by float32 products, and exact scores only where float32 cannot decide.

A float32 sum is within (D + 2) 2**-24 of the true cosine of L2-normalised vectors. If a candidate's score differs from that of
a relevant candidate by more than the error, float32 decides which one ranks higher. The few candidates inside this "band"
around a relevant candidate's score are scored again exactly. The result is identical to that of `ranks.py`, and takes one
matrix product and one pass over it.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mmtune.relevance.ragged import Ragged
from mmtune.runtime.cpu_quota import available_cpus
from mmtune.search.exact_scores import GRID, pair_keys
from mmtune.search.vectors import GatheredRows

COLUMNS = 1 << 16  # candidates per block
ROWS = 256  # queries per block; a block of scores then has 64 MiB
SORT_FROM = 8  # from this number of relevant candidates per query on, sorting a block is faster than counting for each
CROWDED = 1 / 16  # if the bands of a query hold more than this share of a block, the query is left to the exact method


class Band(NamedTuple):
    """The candidates `columns` of a query whose float32 scores are too close to that of its relevant candidate to decide.

    pair: position of the relevant candidate in `relevant.values`
    """

    query: int
    pair: int
    columns: np.ndarray


def worker_threads() -> int:
    """Return the number of threads: one per core that this process may use, at most 8 and at most OMP_NUM_THREADS."""
    try:
        limit = int(os.environ.get("OMP_NUM_THREADS", "8").split(",")[0])
    except ValueError:
        return 1
    return max(1, min(8, available_cpus(), limit))


def blocked_ranks(
    q_QD: np.ndarray, d_ND: np.ndarray | GatheredRows, relevant: Ragged, exclude: Ragged | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ranks [P] of `relevant.values`, tied bool [Q], crowded bool [Q]).

    Crowded queries have too many candidates in their bands: their ranks are not valid, and the exact method must compute them.
    """
    query_P = np.repeat(np.arange(len(relevant)), relevant.counts)
    key_P = pair_keys(q_QD, d_ND, query_P, relevant.values)
    error = (q_QD.shape[1] + 2) * 2.0**-24 * 1.001 + 1.0 / GRID
    low_P = np.nextafter((key_P / GRID - error).astype(np.float32), np.float32(-2))
    high_P = np.nextafter((key_P / GRID + error).astype(np.float32), np.float32(2))
    above_P = np.zeros(len(key_P), np.int64)
    tied_Q, crowded_Q = np.zeros(len(relevant), bool), np.zeros(len(relevant), bool)
    todo = np.flatnonzero(relevant.counts)
    buffer = np.empty((min(ROWS, len(todo)), min(COLUMNS, len(d_ND))), np.float32)
    workers = worker_threads()
    with ThreadPoolExecutor(workers) as pool:
        for left in range(0, len(d_ND), COLUMNS):
            block = d_ND[left : left + COLUMNS]
            for begin in range(0, len(todo), ROWS):
                rows = todo[begin : begin + ROWS]
                scores = buffer[: len(rows), : len(block)]
                np.matmul(q_QD[rows], block.T, out=scores)
                if exclude is not None:
                    row, column = exclude.take(rows)
                    here = (column >= left) & (column < left + len(block))
                    scores[row[here], column[here] - left] = -np.inf
                pending = [(i, int(q)) for i, q in enumerate(rows) if not crowded_Q[q]]

                def count(share: list[tuple[int, int]], scores: np.ndarray = scores, left: int = left) -> list[Band]:
                    bands: list[Band] = []
                    for i, q in share:
                        span = slice(relevant.start[q], relevant.start[q + 1])
                        more, inside = count_above(scores[i], low_P[span], high_P[span])
                        above_P[span] += more
                        if sum(len(at) for _, at in inside) > CROWDED * scores.shape[1] * (span.stop - span.start):
                            crowded_Q[q] = True
                            continue
                        bands += [Band(q, int(span.start) + r, at + left) for r, at in inside]
                    return bands

                shares = pool.map(count, [pending[w::workers] for w in range(workers)])
                _score_bands([band for bands in shares for band in bands], q_QD, d_ND, relevant, key_P, above_P, tied_Q)
    return above_P + 1, tied_Q, crowded_Q


def count_above(s_N: np.ndarray, low_R: np.ndarray, high_R: np.ndarray) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Return (number of scores s_N above each band [R], positions inside each band that is not empty, [(r, positions)])."""
    least = low_R.min()
    mask = s_N >= least
    some = int(np.count_nonzero(mask))
    if some == 0:
        return np.zeros(len(low_R), np.int64), []
    if some * 8 <= len(s_N):  # a good model scores relevant candidates high, so that few candidates are in or above the bands
        at = np.flatnonzero(mask)
        values = s_N[at]
        order = np.argsort(values)
        values = values[order]
        a, b = np.searchsorted(values, low_R, "left"), np.searchsorted(values, high_R, "right")
        return len(values) - b, [(r, at[order[a[r] : b[r]]]) for r in np.flatnonzero(b > a).tolist()]
    if len(low_R) >= SORT_FROM:
        values = np.sort(s_N)
        a, b = np.searchsorted(values, low_R, "left"), np.searchsorted(values, high_R, "right")
        above, inside = len(values) - b, b - a
    else:
        above = np.array([np.count_nonzero(s_N > h) for h in high_R], np.int64)
        inside = np.array([some if low == least else np.count_nonzero(s_N >= low) for low in low_R]) - above
    return above, [(r, np.flatnonzero((s_N >= low_R[r]) & (s_N <= high_R[r]))) for r in np.flatnonzero(inside).tolist()]


def _score_bands(
    bands: list[Band],
    q_QD: np.ndarray,
    d_ND: np.ndarray | GatheredRows,
    relevant: Ragged,
    key_P: np.ndarray,
    above_P: np.ndarray,
    tied_Q: np.ndarray,
) -> None:
    """Score the candidates in the bands exactly and update `above_P` and `tied_Q` in place.

    above_P: number of candidates that rank above each relevant candidate
    tied_Q: True if a relevant candidate of the query ties with an irrelevant one
    """
    if not bands:
        return
    sizes = [len(band.columns) for band in bands]
    query = np.repeat([band.query for band in bands], sizes)
    pair = np.repeat([band.pair for band in bands], sizes)
    column = np.concatenate([band.columns for band in bands])
    other = column != relevant.values[pair]
    query, pair, column = query[other], pair[other], column[other]
    keys = pair_keys(q_QD, d_ND, query, column)
    equal = keys == key_P[pair]
    better = (keys > key_P[pair]) | (equal & (column < relevant.values[pair]))
    above_P += np.bincount(pair[better], minlength=len(above_P))
    for q, c in zip(query[equal].tolist(), column[equal].tolist(), strict=True):
        own = relevant[q]
        place = np.searchsorted(own, c)
        if place == len(own) or own[place] != c:
            tied_Q[q] = True
