"""Cosine similarity of vectors."""

import numpy as np

from mmtune.errors import ModelError


def cosine_similarity(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosine similarities [Q, C] float32 of vectors [Q, D] and [C, D]; a single vector [D] counts as one row.

    Raises ModelError for vectors of different widths.
    """
    q, c = (np.atleast_2d(np.asarray(x, np.float32)) for x in (queries, candidates))
    if q.ndim != 2 or c.ndim != 2 or q.shape[1] != c.shape[1]:
        raise ModelError(f"similarity: vectors [Q, D] and [C, D] of one D are needed; got {q.shape} and {c.shape}")
    q, c = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (q, c))
    return q @ c.T
