"""Cosine similarity of embeddings."""

import numpy as np

from mmtune.errors import ModelError


def cosine_similarity(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Compute the cosine similarity of each query [Q, D] with each candidate [C, D]: [Q, C] float32.

    A single embedding [D] is treated as [1, D]. Raises ModelError if the dimensions of queries and candidates differ.
    """
    q, c = (np.atleast_2d(np.asarray(x, np.float32)) for x in (queries, candidates))
    if q.ndim != 2 or c.ndim != 2 or q.shape[1] != c.shape[1]:
        raise ModelError(
            f"similarity: queries [Q, D] and candidates [C, D] must have the same dimension D; got {q.shape} and {c.shape}"
        )
    q, c = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (q, c))
    return q @ c.T
