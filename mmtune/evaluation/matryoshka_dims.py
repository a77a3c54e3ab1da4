"""Every trained prefix of a Matryoshka model on vectors that are there already: nothing is encoded again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.result import Result

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def prefix(vectors: Mapping[str, Embeddings], dim: int) -> dict[str, Embeddings]:
    """The first `dim` numbers of each vector, unit length again: what the model cut to `dim` would have given, but unnamed."""
    import torch

    from mmtune.losses.matryoshka import truncate

    def short(x_ND: np.ndarray) -> np.ndarray:
        return truncate({"": torch.from_numpy(x_ND)}, dim)[""].numpy()

    return {
        m: replace(e, vectors=short(e.vectors), queries=None if e.queries is None else short(e.queries), fingerprint="")
        for m, e in vectors.items()
    }


def trained_dims(model: "Model") -> list[int]:
    """The prefixes that the model was trained for, shorter than its vectors, ascending."""
    return sorted({int(d) for d in model.info.get("matryoshka", []) if d < model.dim})


def evaluate_dims(vectors: Mapping[str, Embeddings], whole: Result, dims: Sequence[int], **how: Any) -> dict[int, Result]:
    """{dim: Result} of every prefix and of the whole vectors, whose result is there; {} without `dims`. how: as for
    `evaluate_vectors`."""
    if not dims or not vectors:
        return {}
    found = {d: evaluate_vectors(prefix(vectors, d), **how) for d in dims}
    return found | {next(iter(vectors.values())).vectors.shape[1]: whole}
