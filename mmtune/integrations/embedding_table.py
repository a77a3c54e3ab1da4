"""One Parquet file with embeddings, contents and metadata, for viewers: Embedding Atlas, Spotlight, FiftyOne, UMAP."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError
from mmtune.evaluation.model_and_data import as_data, as_model
from mmtune.runtime.files import atomic_open
from mmtune.runtime.results import ResultFields

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


@dataclass
class TableResult(ResultFields):
    """A written table.

    path: the Parquet file
    rows: {modality: rows}
    columns: names of its columns
    fingerprint: fingerprint of the model
    """

    path: str
    rows: dict[str, int]
    columns: list[str]
    fingerprint: str


def write_embedding_table(
    model: "Model | str | Path",
    data: "DataLike",
    out: "str | Path",
    *,
    names: Sequence[str] | None = None,
    contents: bool = True,
    batch_size: int = 64,
    quiet: bool = True,
) -> TableResult:
    """Embed data and write one row for each value: id, group, modality, vector, x, y, the metadata, and the value itself.

    x, y: the first two principal components of all vectors
    model, data: what `mmtune.load` and `mmtune.open_data` accept
    names: modalities to embed; None means all that model and data share
    contents: add a column for each modality: texts as strings, other values as {"bytes", "path"}, as Hugging Face stores them

    Raises DataError if model and data share no modality, or if a metadata column has the name of one of the others.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    loaded, rows = as_model(model), as_data(data)
    vectors = embed_data(loaded, rows, names, batch_size, quiet)
    kinds = list(vectors)
    present = {m: np.flatnonzero(rows.present[m]) for m in kinds}
    stacked = np.concatenate([vectors[m].vectors for m in kinds])
    plane = _plane(stacked)
    flat = pa.array(stacked.reshape(-1), pa.float32())
    columns: dict[str, object] = {
        "id": [i for m in kinds for i in vectors[m].ids],
        "group": [g for m in kinds for g in vectors[m].groups],
        "modality": [m for m in kinds for _ in vectors[m].ids],
        "vector": pa.FixedSizeListArray.from_arrays(flat, stacked.shape[1]),
        "x": plane[:, 0],
        "y": plane[:, 1],
    }
    metadata = {name: [rows.meta(int(r)).get(name) for m in kinds for r in present[m]] for name in _metadata_names(rows)}
    if clash := sorted((columns.keys() | set(kinds)) & metadata.keys()):
        raise DataError(f"{rows.spec}: the metadata column {clash[0]!r} has the name of a column of the table; rename it")
    columns |= metadata
    if contents:
        columns |= {m: _contents(rows, m, kinds, present) for m in kinds}
    table = pa.table(columns)
    with atomic_open(out) as f:
        pq.write_table(table, f)
    return TableResult(str(out), {m: len(present[m]) for m in kinds}, table.column_names, loaded.fingerprint)


def _plane(vectors: np.ndarray) -> np.ndarray:
    """Return the first two principal components [N, 2] float32."""
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred[:5000], full_matrices=False)
    found = centred @ axes[:2].T
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1]))).astype(np.float32)


def _metadata_names(rows: "Data") -> list[str]:
    return sorted({name for row in range(min(len(rows), 1000)) for name in rows.meta(row)})


def _contents(rows: "Data", modality: str, kinds: Sequence[str], present: dict[str, np.ndarray]) -> list[object]:
    kind = modalities.get(modality)
    found: list[object] = []
    for m in kinds:
        for row in present[m]:
            if m != modality:
                found.append(None)
                continue
            value = rows.read(int(row), m)
            found.append(
                kind.decode(value) if kind.language else {"bytes": value, "path": f"{rows.ids[int(row)]}.{kind.extensions[0]}"}
            )
    return found
