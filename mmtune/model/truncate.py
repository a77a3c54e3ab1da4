"""Truncate embeddings to their first dimensions (Matryoshka representations, Kusupati et al. 2022, arXiv 2205.13147)."""

from collections.abc import Mapping

import torch
from torch import Tensor


def truncate(z: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Keep the first `dim` dimensions of each embedding and L2-normalise it again: {modality: [N, D]} -> {modality: [N, dim]}.

    Embeddings that already have `dim` dimensions are returned unchanged.
    """
    return {m: v if v.shape[1] == dim else torch.nn.functional.normalize(v[:, :dim], dim=1) for m, v in z.items()}
