"""Ranks of the relevant candidates in the total order, without ever holding the Q x N matrix."""

import numpy as np

from mmtune.evaluation.ranks_blocked import ranks_wide
from mmtune.relevance.ragged import Ragged
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import ordered
from mmtune.search.vectors import GatheredRows

BUDGET = 64 << 20  # bytes of scores held at once
WIDE = 20_000  # candidates from which float32 with a second look is faster; the answer is the same
MANY = 64  # relevant candidates a query on average, up to which it is
COUNT_UP_TO = 24  # relevant candidates a query up to which counting beats sorting


def chunk_of(candidates: int, chunk: int) -> int:
    """Queries at a time: `chunk`, or fewer where their scores would not fit the budget."""
    return max(1, min(chunk, BUDGET // max(1, 4 * candidates)))


def ranks(
    q_QD: np.ndarray, d_ND: np.ndarray | GatheredRows, items: Ragged, exclude_Q: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (from 1) beside `items.values`, and [Q] bool: some relevant candidate ties with one that is not.

    items: relevant candidates a query; exclude_Q: one candidate a query that does not take part (itself), or None.
    """
    out, tied, busy = np.empty(len(items.values), np.int64), np.zeros(len(items), bool), np.flatnonzero(items.counts)
    if len(d_ND) >= WIDE and len(items.values) <= MANY * len(busy):
        out, tied, left = ranks_wide(q_QD, d_ND, items, exclude_Q)
        busy = np.flatnonzero(left)
    step = chunk_of(len(d_ND), len(busy) or 1)
    for begin in range(0, len(busy), step):
        part = busy[begin : begin + step]
        keys = exact_keys(q_QD[part], d_ND)
        if exclude_Q is not None:
            keys[np.arange(len(part)), exclude_Q[part]] = np.iinfo(np.int32).min  # below every cosine: counts for nobody
        for row, q in zip(keys, part, strict=True):
            span = slice(items.start[q], items.start[q + 1])
            out[span], tied[q] = ranks_row(row, items.values[span])
    return out, tied


def ranks_row(keys_N: np.ndarray, at_R: np.ndarray) -> tuple[np.ndarray, bool]:
    """Ranks [R] of the candidates at positions `at_R` among keys_N, and whether one ties with a candidate outside."""
    key_R = keys_N[at_R]
    if len(at_R) <= COUNT_UP_TO:
        rank, same = np.empty(len(at_R), np.int64), np.empty(len(at_R), np.int64)
        for r, (j, key) in enumerate(zip(at_R, key_R, strict=True)):
            above, equal = np.count_nonzero(keys_N > key), keys_N == key
            rank[r] = above + np.count_nonzero(equal[:j]) + 1
            same[r] = np.count_nonzero(equal)
    else:
        order = ordered(keys_N.clip(-(2**30)))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(1, len(order) + 1)
        rank = place[at_R]
        down = -keys_N[order].astype(np.int64)
        same = np.searchsorted(down, -key_R.astype(np.int64), "right") - np.searchsorted(down, -key_R.astype(np.int64), "left")
    _, which, count = np.unique(key_R, return_inverse=True, return_counts=True)
    return rank, bool((same > count[which]).any())
