"""Pseudo-random draws from hashes of ids, so that they do not depend on the order of rows, blocks or directions."""

import hashlib

import numpy as np


def id_hashes(ids: list[str]) -> np.ndarray:
    """uint64 [N], the same for the same id everywhere (BLAKE2b)."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, np.uint64)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014) on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
