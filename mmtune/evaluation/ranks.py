"""Compute the ranks of the relevant candidates, without a full Q x N score matrix in memory.

Candidates are ordered by score descending, ties by id descending (`mmtune.search.tie_order`).
"""

import numpy as np

from mmtune.evaluation.ranks_blocked import blocked_ranks
from mmtune.relevance.ragged import Ragged
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import order_by_key
from mmtune.search.vectors import GatheredRows

SCORE_BYTES = 64 << 20  # maximum bytes of scores in memory
MANY_CANDIDATES = 20_000  # `blocked_ranks` is faster from this number of candidates on, with the same result ...
MAX_RELEVANT = 64  # ... if queries have at most this many relevant candidates on average
COUNT_UP_TO = 24  # with at most this many relevant candidates, counting is faster than sorting


def queries_at_a_time(candidates: int, chunk: int) -> int:
    """Return `chunk`, or less if the scores of `chunk` queries take more than SCORE_BYTES."""
    return max(1, min(chunk, SCORE_BYTES // max(1, 4 * candidates)))


def relevant_ranks(
    q_QD: np.ndarray, d_ND: np.ndarray | GatheredRows, relevant: Ragged, exclude: Ragged | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ranks [P], tied bool [Q]) of the relevant candidates.

    ranks: rank from 1 of each entry of `relevant.values`
    tied: True if a relevant candidate of the query has the same score as an irrelevant one

    relevant: positions of the relevant candidates of each query
    exclude: candidates to leave out for each query, such as the query itself, none of which is relevant; or None
    """
    rank_P, tied_Q = np.empty(len(relevant.values), np.int64), np.zeros(len(relevant), bool)
    todo = np.flatnonzero(relevant.counts)
    if len(d_ND) >= MANY_CANDIDATES and len(relevant.values) <= MAX_RELEVANT * len(todo):
        rank_P, tied_Q, crowded_Q = blocked_ranks(q_QD, d_ND, relevant, exclude)
        todo = np.flatnonzero(crowded_Q)
    step = queries_at_a_time(len(d_ND), len(todo) or 1)
    for begin in range(0, len(todo), step):
        part = todo[begin : begin + step]
        keys = exact_keys(q_QD[part], d_ND)
        if exclude is not None:
            keys[exclude.take(part)] = np.iinfo(np.int32).min  # below every cosine
        for keys_N, q in zip(keys, part, strict=True):
            span = slice(relevant.start[q], relevant.start[q + 1])
            rank_P[span], tied_Q[q] = ranks_of_query(keys_N, relevant.values[span])
    return rank_P, tied_Q


def ranks_of_query(keys_N: np.ndarray, relevant_R: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return (ranks [R], whether one of them ties with an irrelevant candidate) of the candidates at `relevant_R`.

    keys_N: scores of all candidates as integers (cosine x 2**24, rounded; larger is better; see `mmtune.search.exact_scores`)
    """
    key_R = keys_N[relevant_R]
    if len(relevant_R) <= COUNT_UP_TO:
        rank_R, same_R = np.empty(len(relevant_R), np.int64), np.empty(len(relevant_R), np.int64)
        for r, (j, key) in enumerate(zip(relevant_R, key_R, strict=True)):
            above, equal = np.count_nonzero(keys_N > key), keys_N == key
            rank_R[r] = above + np.count_nonzero(equal[:j]) + 1
            same_R[r] = np.count_nonzero(equal)
    else:
        order = order_by_key(keys_N.clip(-(2**30)))
        rank_N = np.empty(len(order), np.int64)
        rank_N[order] = np.arange(1, len(order) + 1)
        rank_R = rank_N[relevant_R]
        descending, wanted = -keys_N[order].astype(np.int64), -key_R.astype(np.int64)
        same_R = np.searchsorted(descending, wanted, "right") - np.searchsorted(descending, wanted, "left")
    _, which, count = np.unique(key_R, return_inverse=True, return_counts=True)
    return rank_R, bool((same_R > count[which]).any())
