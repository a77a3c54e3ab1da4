"""Evaluate the dimensions for which a Matryoshka model was trained, by truncating vectors that are already embedded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.evaluation.result import Result

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def prefix_vectors(vectors: Mapping[str, Embeddings], dim: int) -> dict[str, Embeddings]:
    """Truncate the vectors to the first `dim` dimensions and L2-normalise them again.

    The vectors equal those of `model.truncated(dim)`; the fingerprint is left empty.
    """
    import torch

    from mmtune.model.truncate import truncate

    def prefix(x_ND: np.ndarray) -> np.ndarray:
        return truncate({"": torch.from_numpy(x_ND)}, dim)[""].numpy()

    return {
        m: replace(e, vectors=prefix(e.vectors), queries=None if e.queries is None else prefix(e.queries), fingerprint="")
        for m, e in vectors.items()
    }


def trained_dims(model: "Model") -> list[int]:
    """Return the Matryoshka dimensions that the model was trained for and that are smaller than its own, ascending."""
    return sorted({int(d) for d in model.info.get("matryoshka", []) if d < model.dim})


def evaluate_dims(
    vectors: Mapping[str, Embeddings],
    whole: Result,
    dims: Sequence[int],
    measure: Callable[[Mapping[str, Embeddings]], Result],
) -> dict[int, Result]:
    """Return {dim: Result} for every dimension in `dims` and for the full dimension, whose result is `whole`.

    measure: evaluates vectors, with the same options as for `whole`

    Returns {} without `dims`.
    """
    if not dims or not vectors:
        return {}
    results = {d: measure(prefix_vectors(vectors, d)) for d in dims}
    return results | {next(iter(vectors.values())).vectors.shape[1]: whole}
