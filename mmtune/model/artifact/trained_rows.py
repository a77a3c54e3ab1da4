"""Which rows an artifact was trained on: int64 labels by key ("id" and modalities), beside its weights.

"MODALITY:rows" is the number of training rows that have the modality, from which follows whether its labels repeat.
"""

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


def rows_key(modality: str) -> str:
    """The key beside a modality's labels under which [the number of training rows that have the modality] is kept."""
    return f"{modality}:rows"


def with_row_counts(rows: Rows) -> dict[str, np.ndarray]:
    """The labels with, for each modality, how many rows have it: labels that repeat do not identify a row."""
    counts = {rows_key(k): np.array([np.count_nonzero(v)]) for k, v in rows.items() if k != "id" and not k.endswith(":rows")}
    return {**counts, **rows}


def union(parts: Sequence[Rows | None]) -> dict[str, np.ndarray]:
    """The distinct labels of all parts, by key, without 0, which means no label.

    A row count is the largest of the parts' (the same rows may have been trained on twice), and is left out where a part with
    labels of that modality has none: then every label counts as one that identifies a row.
    """
    kept = [p for p in parts if p]
    labels = sorted({k for p in kept for k in p if not k.endswith(":rows")})
    out = {}
    for k in labels:
        having = [p for p in kept if k in p]
        every = np.unique(np.concatenate([p[k] for p in having]))
        out[k] = every[every != 0]
        if k != "id" and all(rows_key(k) in p for p in having):
            out[rows_key(k)] = np.array([max(int(p[rows_key(k)][0]) for p in having)])
    return out
