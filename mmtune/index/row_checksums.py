"""Checksums of embeddings: one 64-bit number per row, computed for many rows at once."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio: the increment of the splitmix64 generator (Steele, Lea, Flood, OOPSLA 2014)."""
BATCH = 2048
"""Rows that are computed at once."""


def _multipliers(count: int) -> np.ndarray:
    """Return `count` fixed odd 64-bit numbers: the outputs of splitmix64 with seed 0."""
    x = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


def row_checksums(keys_N: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """Return int64 [N]: a checksum of each row's key (int64) and vector (float32).

    It is the sum of all 32-bit words times fixed odd 64-bit numbers, modulo 2**64. A row in which one word changed has another
    checksum; a row in which several did, except with a probability of about 2**-32. It detects damage, not forgery.
    """
    vectors_ND = np.ascontiguousarray(vectors_ND, np.float32)
    factors, out = _multipliers(vectors_ND.shape[1] + 1), np.empty(len(vectors_ND), np.uint64)
    for start in range(0, len(out), BATCH):
        part = slice(start, start + BATCH)
        words = vectors_ND[part].view(np.uint32)
        out[part] = np.einsum("nd,d->n", words.astype(np.uint64), factors[1:])
    mixed = np.ascontiguousarray(keys_N, np.int64).view(np.uint64) * factors[0]
    return (out + mixed + GOLDEN).view(np.int64)
