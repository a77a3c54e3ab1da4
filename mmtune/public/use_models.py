"""Public functions about a single model: load, save, similarity, embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from mmtune.backbones.cpu_fast import CpuKernels
    from mmtune.data.shards.dataset import Data
    from mmtune.embedding.parquet_parts import EmbedResult
    from mmtune.model.dual_encoder import Model


def load(
    model: str | Path | Mapping[str, str],
    device: str | None = None,
    *,
    dim: int | None = None,
    cpu_kernels: CpuKernels = "auto",
) -> Model:
    """The model that MODEL names, in eval mode: an artifact or run directory, hf:NAME, open_clip:NAME/TAG, timm:NAME, st:NAME, or
    {modality: MODEL}.

    device: default the accelerator if there is one; dim: use only the first dimensions of its vectors. Raises ModelError.
    """
    from mmtune.model.artifact.load import load as load_

    return load_(model, device, dim=dim, cpu_kernels=cpu_kernels)


def save(
    model: Model,
    directory: str | Path,
    *,
    metrics: Mapping[str, object] | None = None,
    info: Mapping[str, object] | None = None,
    trained_on: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Write a model as an artifact directory and return its fingerprint.

    metrics, info: plain data for metrics.json, the manifest and the model card; trained_on: int64 labels of the training rows.
    """
    from mmtune.model.artifact.save import save as save_

    return save_(model, directory, metrics=metrics, info=info, trained_on=trained_on)


def similarity(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosine similarities [Q, C] float32 of vectors [Q, D] and [C, D]; a single vector [D] counts as one row.

    Raises ModelError for vectors of different widths.
    """
    from mmtune.model.similarity import cosine_similarity

    return cosine_similarity(queries, candidates)


def embed(
    model: Model | str,
    data: Data | str,
    out: str | Path,
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    dim: int | None = None,
    role: str | None = None,
) -> EmbedResult:
    """Write OUT/<modality>/part-*.parquet (id, group, vector), one part per shard, and OUT/meta.json.

    A part that is there with the same fingerprint and shard content is kept, so a killed run continues where it stopped; parts
    of another model are refused. Processes that run this at the same time share the parts (see `mmtune.runtime.work_lock`);
    each returns when all parts are written. Rows that lack a modality are counted, not written. dim: only the first dimensions,
    normalised again (`Model.truncated`); role: the prompt around captions, default: as candidates (see `mmtune.model.prompts`).
    """
    from mmtune.embedding.parquet_parts import embed as embed_

    return embed_(model, data, out, modalities, batch_size, quiet, dim=dim, role=role)
