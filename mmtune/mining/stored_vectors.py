"""Vectors that `mmtune embed` has written, as memory-mapped arrays for mining: `mmtune mine --vectors DIR`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.embedding.parquet_parts import read_meta
from mmtune.errors import DataError
from mmtune.model.prompts import QUERY, has_query_prompt

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

BLOCK = 65_536
"""Rows that are copied at a time."""
QUERY_FOLDER = "queries"
"""Subfolder of the vectors with those of prompt role "query", for models whose queries have a prompt of their own."""


def stored_embeddings(
    folder: str | Path, model: "Model", data: "Data", modalities: Sequence[str], scratch: str | Path
) -> dict[str, Embeddings]:
    """Open the vectors of `mmtune embed` for the rows of a dataset: {modality: Embeddings}, in the order of the dataset.

    The vectors are copied from Parquet to one array file of each modality in `scratch` and mapped from there, so that memory holds only
    the pages in use; ids and labels are in memory.

    folder: the directory OUT of `mmtune embed`, of the same model and data. If the model has a query prompt, OUT/queries is the
        directory of `mmtune embed --role query`
    scratch: directory for rows x dimensions x 4 bytes, which the caller removes

    Raises DataError if the vectors are of another model, of other rows, or incomplete.
    """
    folder = Path(folder)
    _check_meta(folder, model, None)
    if any(has_query_prompt(model.prompts, m) for m in modalities):
        _check_meta(folder / QUERY_FOLDER, model, QUERY)
    out = {}
    for m in modalities:
        rows = np.flatnonzero(data.present[m])
        ids = data.ids.take(rows)
        made = [_mapped(folder / m, ids, model.dim, Path(scratch) / f"{m}.npy", folder)]
        if has_query_prompt(model.prompts, m):
            made.append(_mapped(folder / QUERY_FOLDER / m, ids, model.dim, Path(scratch) / f"{m}-{QUERY}.npy", folder))
        labels = {k: v[rows] for k, v in data.labels.items()}
        out[m] = Embeddings(ids, data.groups.take(rows), labels, made[0], model.fingerprint, *made[1:])
    return out


def _check_meta(folder: Path, model: "Model", role: str | None) -> None:
    """Raise DataError unless `mmtune embed` wrote the folder, with this model and prompt role."""
    again = f"`mmtune embed MODEL DATA --out {folder}{f' --role {role}' if role else ''}`"
    if not (folder / "meta.json").is_file():
        why = "the model has another prompt for queries, so their vectors are needed too: " if role else ""
        raise DataError(f"--vectors {folder}: has no meta.json; {why}give the directory that {again} wrote")
    meta = read_meta(folder)
    if meta.get("fingerprint") != model.fingerprint or meta.get("role") != role:
        raise DataError(
            f"--vectors {folder}: vectors of another model ({meta.get('fingerprint')}) or prompt role than {model.fingerprint}; {again}"
        )


def _mapped(parts: Path, ids: list[str], dim: int, path: Path, folder: Path) -> np.ndarray:
    """Copy the vectors of all parts to an array file and map it; checks that the ids are `ids`, in order."""
    import pyarrow.parquet as pq

    if not ids:
        return np.zeros((0, dim), np.float32)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (len(ids), dim))
    done = 0
    for part in sorted(parts.glob("part-*.parquet")):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(BLOCK, columns=["id", "vector"]):
                end = done + len(batch)
                if batch.column(0).to_pylist() != ids[done:end]:
                    raise DataError(
                        f"--vectors {folder}: {part.name} of {parts.name} has other rows than the data; embed again"
                    )
                vectors[done:end] = batch.column(1).flatten().to_numpy().reshape(-1, dim)
                done = end
    if done < len(ids):
        raise DataError(
            f"--vectors {folder}: {done:,} of {len(ids):,} vectors of {parts.name}; run `mmtune embed` again, it continues"
        )
    vectors.flush()
    return np.load(path, mmap_mode="r")
