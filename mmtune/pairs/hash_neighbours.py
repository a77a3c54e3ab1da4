"""Find all pairs of 64-bit hashes within a Hamming distance, without comparing every hash with every other.

Two hashes that differ in at most d bits are equal in at least one of d + 1 parts into which the 64 bits are divided, so only hashes
that are equal in one part are compared (multi-index hashing, Norouzi et al. 2012, with the smallest search radius).
"""

from collections.abc import Iterator

import numpy as np

BLOCK = 1024
"""Hashes of a bucket that are compared with the whole bucket at once."""


def hash_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Find the pairs (i, j), i < j, of hashes that differ in at most `distance` bits.

    hashes: uint64 [N], distinct (with many equal hashes the number of pairs is quadratic)
    Returns int64 [P, 2], sorted, each pair once.
    """
    if distance < 0 or len(hashes) < 2:
        return np.zeros((0, 2), np.int64)
    edges = np.linspace(0, 64, distance + 2).round().astype(int)
    found = [np.zeros((0, 2), np.int64)]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        mask = np.uint64((1 << int(high - low)) - 1)
        part = (hashes >> np.uint64(low)) & mask
        order = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(order, starts):
            found += _within(hashes, bucket, distance)
    return np.unique(np.concatenate(found), axis=0)


def _within(hashes: np.ndarray, bucket: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    for start in range(0, len(bucket) if len(bucket) > 1 else 0, BLOCK):
        block = bucket[start : start + BLOCK]
        bits = np.bitwise_count(hashes[block][:, None] ^ hashes[bucket][None, :])
        i, j = np.nonzero(bits <= distance)
        pairs = np.stack([block[i], bucket[j]], 1)
        yield pairs[pairs[:, 0] < pairs[:, 1]]
