"""Matryoshka: the first d numbers of a vector are a vector of their own, trained by the same loss."""

from collections.abc import Mapping

import torch
from torch import Tensor


def truncate(z: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """The first `dim` of each vector, unit length again: {name: [U, dim]}.

    Kusupati et al. 2022 (arXiv 2205.13147): train the weighted mean of a loss over such prefixes.
    """
    return {m: v if v.shape[1] == dim else torch.nn.functional.normalize(v[:, :dim], dim=1) for m, v in z.items()}
