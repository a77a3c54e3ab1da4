"""The one total order of search results: score key descending, ties by document id DESCENDING, as trec_eval does.

A score key is an integer on a grid (see `mmtune.search.exact_scores`), so equal scores are equal integers. Callers number the
candidates in descending order of id (`tie_order`); among equal keys the smaller candidate number then comes first.
"""

from collections.abc import Sequence

import numpy as np

GRID = 2**24
"""Steps of the score grid per unit of cosine. Every key of [-GRID, GRID] is a float32 exactly."""

NO_CANDIDATE = np.iinfo(np.int64).max


def tie_order(ids: Sequence[str]) -> np.ndarray:
    """Positions [N] of `ids` in descending order (by code point, which is the order of UTF-8 bytes that trec_eval uses)."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True), dtype=np.int64)


def to_scores(keys: np.ndarray) -> np.ndarray:
    """Keys -> cosines, float32, exact."""
    return keys.astype(np.float32) / np.float32(GRID)


def sort_words(keys: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """int64 words that sort ascending in the total order: the inverted key in the high 32 bits, the candidate in the low."""
    return ((GRID - keys.astype(np.int64)) << 32) | candidates


def order_by_key(keys_N: np.ndarray) -> np.ndarray:
    """Positions [N] in the total order: key descending, ties by position ascending."""
    words = sort_words(keys_N, np.arange(len(keys_N)))
    words.sort()  # one SIMD sort of 64-bit words
    words &= 0xFFFFFFFF
    return words


def order_by_key_and_id(keys_N: np.ndarray, ids: Sequence[str]) -> list[int]:
    """Positions [N] in the total order of candidates that are in no order: key descending, ties by id descending."""
    return sorted(range(len(ids)), key=lambda i: (keys_N[i], ids[i]), reverse=True)


def positions_by_query(query: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Lay pairs out by query: (order that groups pairs by query, column of each pair in its query's row, longest row).

    query: int [P], the query of each pair, below `queries` (at most 32,767).
    """
    order = np.argsort(query.astype(np.int16), kind="stable")  # numpy sorts 16-bit integers by radix
    counts = np.bincount(query, minlength=queries)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return order, np.arange(len(query)) - starts, int(counts.max(initial=0))


def top_k_of_pairs(
    query: np.ndarray, candidate: np.ndarray, keys: np.ndarray, queries: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates of each query among scored pairs in any order.

    query, candidate, keys: [P]. Returns (candidates int64, keys int32) [queries, k] in the total order; unused places hold
    candidate -1.
    """
    order, column, longest = positions_by_query(query, queries)
    words = np.full((queries, max(longest, k)), NO_CANDIDATE, np.int64)
    words[query[order], column] = sort_words(keys[order], candidate[order])
    words.sort(axis=1)
    words = words[:, :k]
    empty = words == NO_CANDIDATE
    candidates = np.where(empty, -1, words & 0xFFFFFFFF)
    return candidates, np.where(empty, -GRID, GRID - (words >> 32)).astype(np.int32)
