"""Pseudo-random draws from hashes of ids, so that they do not depend on the order of rows, blocks or directions."""

import hashlib

import numpy as np


def id_hashes(ids: list[str]) -> np.ndarray:
    """uint64 [N], the same for the same id everywhere (BLAKE2b)."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, np.uint64)
