"""Hashes of ids, used for pseudo-random draws that do not depend on the order of rows, blocks or directions."""

import hashlib
from collections.abc import Iterable

import numpy as np


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """Hash ids to uint64 [N] (BLAKE2b). The same id always has the same hash."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, np.uint64)
