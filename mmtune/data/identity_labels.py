"""Labels: stable 63-bit integers that stand for "the same thing", comparable between processes, machines and datasets."""

from hashlib import blake2b

import numpy as np


def label(data: bytes) -> int:
    """A positive 63-bit number for `data` (blake2b): equal data, equal label; 0 is never returned, it means "none"."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1 or 1


def mix(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """Labels of pairs of labels, [N] int64 (the finaliser of splitmix64, so that equal sums do not collide)."""
    with np.errstate(over="ignore"):
        x = a_N.astype(np.uint64) ^ (b_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = (x ^ (x >> np.uint64(31))) >> np.uint64(1)
    return np.where(x == 0, np.uint64(1), x).astype(np.int64)


def first_seen(labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first [U], inverse [N]): where each distinct label comes first, in that order, and which of these each position is."""
    _, first, inverse = np.unique(labels_N, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse]
