"""Identity labels: 63-bit integers, equal for equal ids, groups or contents, on every machine and in every dataset."""

from hashlib import blake2b

import numpy as np


def stable_label(data: bytes) -> int:
    """A positive 63-bit number for `data` (blake2b): equal data, equal label. Never 0, which means "none"."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1 or 1


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014) on uint64: a random-looking number of each number."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix_labels(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """Labels of pairs of labels, int64 [N] (mixed by `splitmix64`, so that pairs of equal sum do not collide)."""
    with np.errstate(over="ignore"):
        x = a_N.astype(np.uint64) ^ (b_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        x = splitmix64(x) >> np.uint64(1)
    return np.where(x == 0, np.uint64(1), x).astype(np.int64)


def first_occurrences(labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first [U], inverse [N]): the position where each distinct label occurs first, ascending, and for each of the N positions the
    number of its label in that list."""
    _, first, inverse = np.unique(labels_N, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]
