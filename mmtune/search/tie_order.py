"""The one total order of search results: by score key descending, then by document id DESCENDING, as in trec_eval.

A score key is an integer (see `mmtune.search.exact_scores`), so equal scores are equal integers. Callers number the candidates
in descending order of their ids (`tie_order`). Among equal keys, the smaller candidate number then comes first.
"""

from collections.abc import Sequence

import numpy as np

GRID = 2**24
"""Number of key steps per 1.0 of cosine. Every integer in [-GRID, GRID] can be represented exactly as float32."""

NO_CANDIDATE = np.iinfo(np.int64).max
"""Sort word of an empty place; it sorts after every candidate."""


def tie_order(ids: Sequence[str]) -> np.ndarray:
    """Positions [N] that sort `ids` descending by code point, which is the order of UTF-8 bytes that trec_eval uses."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True), dtype=np.int64)


def to_scores(keys: np.ndarray) -> np.ndarray:
    """Convert keys to cosines, float32, exactly."""
    return keys.astype(np.float32) / np.float32(GRID)


def sort_words(keys: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Pack key and candidate into int64 words whose ascending order is the total order.

    The high 32 bits hold GRID - key, the low 32 bits the candidate number.
    """
    return ((GRID - keys.astype(np.int64)) << 32) | candidates


def order_by_key(keys_N: np.ndarray) -> np.ndarray:
    """Positions [N] in the total order: key descending, then position ascending."""
    words = sort_words(keys_N, np.arange(len(keys_N)))
    words.sort()  # one SIMD sort of 64-bit words
    words &= 0xFFFFFFFF
    return words


def order_by_key_and_id(keys_N: np.ndarray, ids: Sequence[str]) -> list[int]:
    """Positions [N] in the total order, for candidates not sorted by id: key descending, then id descending."""
    return sorted(range(len(ids)), key=lambda i: (keys_N[i], ids[i]), reverse=True)


def positions_by_query(query: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Arrange pairs in one row per query: (order that groups pairs by query, column of each pair in its row, longest row).

    query: int [P], the query number of each pair, less than `queries` (at most 32,767)
    """
    order = np.argsort(query.astype(np.int16), kind="stable")  # numpy uses the fast radix sort for 16-bit integers
    counts = np.bincount(query, minlength=queries)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return order, np.arange(len(query)) - starts, int(counts.max(initial=0))


def top_k_of_pairs(
    query: np.ndarray, candidate: np.ndarray, keys: np.ndarray, queries: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best candidates of each query among scored pairs in any order.

    query, candidate, keys: [P], the pairs and their keys

    Returns (candidates int64, keys int32) [queries, k] in the total order. If a query has fewer than k pairs, the rest of its
    row has candidate -1 and key -GRID.
    """
    order, column, longest = positions_by_query(query, queries)
    words = np.full((queries, max(longest, k)), NO_CANDIDATE, np.int64)
    words[query[order], column] = sort_words(keys[order], candidate[order])
    words.sort(axis=1)
    words = words[:, :k]
    empty = words == NO_CANDIDATE
    candidates = np.where(empty, -1, words & 0xFFFFFFFF)
    return candidates, np.where(empty, -GRID, GRID - (words >> 32)).astype(np.int32)
