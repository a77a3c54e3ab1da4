"""Read and combine the labels of the rows that a model was trained on, which are stored with its artifact.

They are int64 labels, one array for the row ids (key "id") and one for the content of each modality. The additional key
"MODALITY:rows" holds the number of training rows that have the modality. If it is larger than the number of labels, the labels
repeat, so that a label does not identify a row.

Of streamed rows only the texts are known: "MODALITY:sample" is a sample of the labels of their distinct contents, and
"MODALITY:level" its level (see `mmtune.model.artifact.label_sample`). It tells how texts were worded, not which rows were trained on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.model.artifact.label_sample import LabelSample

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

TRAINED = "trained_on.safetensors"
Rows = Mapping[str, np.ndarray]


def trained_on(model: "Model | str | Path | Mapping[str, str]") -> dict[str, np.ndarray] | None:
    """Return the labels of the rows that a model was trained on, or None if they are not stored (e.g. for a checkpoint).

    model: an artifact directory, or a model loaded from one; {modality: MODEL} names checkpoints
    """
    if isinstance(model, Mapping):
        return None
    source = model if isinstance(model, str | Path) else model.info.get("source", "")
    path = Path(source) / TRAINED if isinstance(source, str | Path) else None
    if path is None or not path.is_file():
        return None
    from safetensors.numpy import load

    return load(path.read_bytes())


def rows_key(modality: str) -> str:
    """Return the key of the number of training rows that have a modality; its value is an array with this single number."""
    return f"{modality}:rows"


def is_plain(key: str) -> bool:
    """Whether a key is "id" or a modality, and holds the labels of all rows."""
    return ":" not in key


def sample_labels(samples: Mapping[str, LabelSample]) -> dict[str, np.ndarray]:
    """Return the entries of samples, {modality: sample of the labels of its contents}."""
    out: dict[str, np.ndarray] = {}
    for m, sample in samples.items():
        out |= {f"{m}:sample": sample.labels, f"{m}:level": np.array([sample.level])}
    return out


def read_samples(rows: Rows) -> dict[str, LabelSample]:
    """Return {modality: sample} of entries that `sample_labels` made."""
    names = [k.removesuffix(":sample") for k in rows if k.endswith(":sample")]
    return {m: LabelSample(rows[f"{m}:sample"], int(rows[f"{m}:level"][0])) for m in names}


def known_contents(rows: Rows | None, modality: str) -> tuple[np.ndarray, int] | None:
    """Return (labels of the distinct contents of a modality that were trained on, the level up to which they are complete).

    Contents whose labels are not `in_sample` of the level may have been trained on without being there. None if nothing is known.
    """
    sample, labels = read_samples(rows or {}).get(modality), (rows or {}).get(modality)
    if sample is None:
        return None if labels is None else (labels, 0)
    return (sample.labels if labels is None else np.union1d(labels, sample.labels)), sample.level


def with_row_counts(rows: Rows) -> dict[str, np.ndarray]:
    """Add the number of rows that have each modality. `rows` must still have one label for each row (0: none)."""
    counts = {rows_key(k): np.array([np.count_nonzero(v)]) for k, v in rows.items() if k != "id" and is_plain(k)}
    return {**counts, **rows}


def union(rows: Sequence[Rows | None]) -> dict[str, np.ndarray]:
    """Return the distinct labels of all `rows`, by key. The label 0, which means "no label", is left out.

    The row count of a modality is the largest of the counts in `rows`, because the same rows may have been trained on more than
    once. It is left out if one of `rows` has labels of the modality but no count; without a count, every label is taken to
    identify a row. Samples become one of the highest level.
    """
    present = [r for r in rows if r]
    keys = sorted({k for r in present for k in r if is_plain(k)})
    out = sample_labels(_union_of_samples([read_samples(r) for r in present]))
    for k in keys:
        with_key = [r for r in present if k in r]
        labels = np.unique(np.concatenate([r[k] for r in with_key]))
        out[k] = labels[labels != 0]
        if k != "id" and all(rows_key(k) in r for r in with_key):
            out[rows_key(k)] = np.array([max(int(r[rows_key(k)][0]) for r in with_key)])
    return out


def _union_of_samples(parts: Sequence[Mapping[str, LabelSample]]) -> dict[str, LabelSample]:
    out = {}
    for m in sorted({m for part in parts for m in part}):
        samples = [part[m] for part in parts if m in part]
        merged = LabelSample(level=max(s.level for s in samples))
        for s in samples:
            merged.add(s.labels)
        out[m] = merged
    return out
