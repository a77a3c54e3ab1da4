"""Read and combine the labels of the rows that a model was trained on, which are stored with its artifact.

They are int64 labels, one array for the row ids (key "id") and one for the content of each modality. The additional key
"MODALITY:rows" holds the number of training rows that have the modality. If it is larger than the number of labels, the labels
repeat, so that a label does not identify a row.
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
    """Return the labels of the rows that a model was trained on, or None if they are not stored (e.g. for a checkpoint).

    model: an artifact directory, or a model loaded from one
    """
    source = model if isinstance(model, str | Path) else model.info.get("source", "")
    path = Path(source) / TRAINED if isinstance(source, str | Path) else None
    if path is None or not path.is_file():
        return None
    from safetensors.numpy import load

    return load(path.read_bytes())


def rows_key(modality: str) -> str:
    """Return the key of the number of training rows that have a modality; its value is an array with this single number."""
    return f"{modality}:rows"


def with_row_counts(rows: Rows) -> dict[str, np.ndarray]:
    """Add the number of rows that have each modality. `rows` must still have one label for each row (0: none)."""
    counts = {rows_key(k): np.array([np.count_nonzero(v)]) for k, v in rows.items() if k != "id" and not k.endswith(":rows")}
    return {**counts, **rows}


def union(rows: Sequence[Rows | None]) -> dict[str, np.ndarray]:
    """Return the distinct labels of all `rows`, by key. The label 0, which means "no label", is left out.

    The row count of a modality is the largest of the counts in `rows`, because the same rows may have been trained on more than
    once. It is left out if one of `rows` has labels of the modality but no count; without a count, every label is taken to
    identify a row.
    """
    present = [r for r in rows if r]
    keys = sorted({k for r in present for k in r if not k.endswith(":rows")})
    out = {}
    for k in keys:
        with_key = [r for r in present if k in r]
        labels = np.unique(np.concatenate([r[k] for r in with_key]))
        out[k] = labels[labels != 0]
        if k != "id" and all(rows_key(k) in r for r in with_key):
            out[rows_key(k)] = np.array([max(int(r[rows_key(k)][0]) for r in with_key)])
    return out
