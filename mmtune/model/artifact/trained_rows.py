"""The rows that an artifact was trained on: int64 labels by key ("id" and modalities), stored beside its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

TRAINED = "trained_on.safetensors"
Rows = Mapping[str, np.ndarray]


def trained_on(model: "Model | str | Path") -> dict[str, np.ndarray] | None:
    """Labels of the rows that an artifact was trained on; None where they are not stored, as for a checkpoint."""
    source = model if isinstance(model, str | Path) else model.info.get("source", "")
    path = Path(source) / TRAINED if isinstance(source, str | Path) else None
    if path is None or not path.is_file():
        return None
    from safetensors.numpy import load

    return load(path.read_bytes())


def union(parts: Sequence[Rows | None]) -> dict[str, np.ndarray]:
    """The distinct labels of all parts, by key, without 0, which means no label."""
    present = [p for p in parts if p]
    keys = sorted({k for p in present for k in p})
    labels = {k: np.unique(np.concatenate([p[k] for p in present if k in p])) for k in keys}
    return {k: v[v != 0] for k, v in labels.items()}
