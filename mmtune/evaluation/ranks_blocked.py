"""Ranks among very many candidates: one float32 product, counting, and an exact second look at what lies too near.

float32 sums are within (D + 2) 2**-24 of the truth for unit vectors. A candidate further than that from a relevant one's
score is counted above or below by the float32 product alone; the few inside the band are scored again exactly. The
answer is bit for bit that of `ranks.ranks`, at the price of one matrix product and a pass over its result.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mmtune.relevance.ragged import Ragged
from mmtune.search.exact_scores import pair_keys
from mmtune.search.tie_order import GRID
from mmtune.search.vectors import GatheredRows

COLUMNS = 1 << 16
ROWS = 256  # 64 MiB of scores
SORT_FROM = 8  # relevant candidates a query from which one sort of a block beats counting for each
CROWDED = 1 / 16  # a band that holds more of the block than this is cheaper to score exactly as a whole

Band = tuple[int, int, np.ndarray]  # row, which relevant candidate (position in items.values), columns


def threads() -> int:
    """Cores that this process may use; OMP_NUM_THREADS is respected."""
    try:
        return max(1, min(8, len(os.sched_getaffinity(0)), int(os.environ.get("OMP_NUM_THREADS", "8").split(",")[0])))
    except (AttributeError, ValueError):
        return 1


def ranks_wide(
    q_QD: np.ndarray, d_ND: np.ndarray | GatheredRows, items: Ragged, exclude_Q: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ranks beside items.values, tied [Q], crowded [Q]): rows marked crowded have no ranks yet and need the exact path."""
    owner = np.repeat(np.arange(len(items)), items.counts)
    key_P = pair_keys(q_QD, d_ND, owner, items.values)
    error = (q_QD.shape[1] + 2) * 2.0**-24 * 1.001 + 1.0 / GRID
    low_P = np.nextafter((key_P / GRID - error).astype(np.float32), np.float32(-2))
    high_P = np.nextafter((key_P / GRID + error).astype(np.float32), np.float32(2))
    above, tied, crowded = np.zeros(len(key_P), np.int64), np.zeros(len(items), bool), np.zeros(len(items), bool)
    busy = np.flatnonzero(items.counts)
    buffer = np.empty((min(ROWS, len(busy)), min(COLUMNS, len(d_ND))), np.float32)
    workers = threads()
    with ThreadPoolExecutor(workers) as pool:
        for left in range(0, len(d_ND), COLUMNS):
            block = d_ND[left : left + COLUMNS]
            for begin in range(0, len(busy), ROWS):
                rows = busy[begin : begin + ROWS]
                scores = buffer[: len(rows), : len(block)]
                np.matmul(q_QD[rows], block.T, out=scores)
                if exclude_Q is not None:
                    own = np.flatnonzero((exclude_Q[rows] >= left) & (exclude_Q[rows] < left + len(block)))
                    scores[own, exclude_Q[rows[own]] - left] = -np.inf
                todo = [(i, int(q)) for i, q in enumerate(rows) if not crowded[q]]

                def count(mine: list[tuple[int, int]], scores: np.ndarray = scores, left: int = left) -> list[Band]:
                    bands: list[Band] = []
                    for i, q in mine:
                        span = slice(items.start[q], items.start[q + 1])
                        more, inside = count_row(scores[i], low_P[span], high_P[span])
                        above[span] += more
                        if sum(len(at) for _, at in inside) > CROWDED * scores.shape[1] * (span.stop - span.start):
                            crowded[q] = True
                            continue
                        bands += [(q, int(span.start) + r, at + left) for r, at in inside]
                    return bands

                found = [b for bands in pool.map(count, [todo[w::workers] for w in range(workers)]) for b in bands]
                _settle(found, q_QD, d_ND, items, key_P, above, tied)
    return above + 1, tied, crowded


def count_row(s_N: np.ndarray, low_R: np.ndarray, high_R: np.ndarray) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """How many of s_N lie above each band [R], and the positions inside the bands that are not empty."""
    least = low_R.min()
    mask = s_N >= least
    some = int(np.count_nonzero(mask))
    if some == 0:
        return np.zeros(len(low_R), np.int64), []
    if some * 8 <= len(s_N):  # a good model's relevant candidates lie in the tail: all the rest is settled
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


def _settle(
    bands: list[Band],
    q_QD: np.ndarray,
    d_ND: np.ndarray | GatheredRows,
    items: Ragged,
    key_P: np.ndarray,
    above: np.ndarray,
    tied: np.ndarray,
) -> None:
    """Score what lies in the bands exactly: add those above to `above`, mark queries that tie with an irrelevant one."""
    if not bands:
        return
    sizes = [len(at) for _, _, at in bands]
    q = np.repeat([b[0] for b in bands], sizes)
    p = np.repeat([b[1] for b in bands], sizes)
    at = np.concatenate([b[2] for b in bands])
    other = at != items.values[p]
    q, p, at = q[other], p[other], at[other]
    keys = pair_keys(q_QD, d_ND, q, at)
    better = (keys > key_P[p]) | ((keys == key_P[p]) & (at < items.values[p]))
    above += np.bincount(p[better], minlength=len(above))
    for query, column in zip(q[keys == key_P[p]], at[keys == key_P[p]], strict=True):
        mine = items[query]
        place = np.searchsorted(mine, column)
        if place == len(mine) or mine[place] != column:
            tied[query] = True
