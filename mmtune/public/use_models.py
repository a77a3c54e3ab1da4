"""Public functions about a single model: load, save, similarity, embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmtune.runtime.openmp_policy import set_openmp_wait_policy

if TYPE_CHECKING:
    import numpy as np

    from mmtune.backbones.cpu_fast import CpuKernels
    from mmtune.backbones.cross_encoders import CrossEncoder
    from mmtune.data.in_memory import DataLike
    from mmtune.embedding.parquet_parts import EmbedResult
    from mmtune.model.cross_encoder import CrossEncoderModel
    from mmtune.model.dual_encoder import Model


def load(
    model: str | Path | Mapping[str, str],
    device: str | None = None,
    *,
    dim: int | None = None,
    cpu_kernels: CpuKernels = "auto",
) -> Model:
    """Load a model in eval mode.

    model: an artifact directory, hub:ORG/NAME[@REVISION] (an artifact on the Hugging Face hub), hf:NAME, open_clip:NAME/TAG, timm:NAME or st:NAME; or {modality: MODEL}, one for each tower
    device: torch device; None means a GPU if there is one
    dim: truncate embeddings to this many dimensions (Matryoshka)
    cpu_kernels: "auto" replaces parts of known towers by faster kernels on a CPU; "off" keeps the upstream modules

    Raises ModelError if the model cannot be loaded.
    """
    set_openmp_wait_policy()
    from mmtune.model.artifact.load import load as load_

    return load_(model, device, dim=dim, cpu_kernels=cpu_kernels)


def load_cross_encoder(directory: str | Path, device: str | None = None) -> CrossEncoderModel | CrossEncoder:
    """Load a cross-encoder that `train` made by a recipe with `cross_encoder:`. Its method `score(pairs)` rates pairs of values.

    One of two texts (recipe key `cross_encoder.model`) is a `CrossEncoder`, a scorer of strings without towers.

    directory: RUN/artifact, or RUN
    device: torch device; None means a GPU if there is one

    Raises ModelError if the cross-encoder cannot be loaded.
    """
    from mmtune.model.cross_encoder_load import load_cross_encoder as load_

    return load_(directory, device)


def save(
    model: Model,
    directory: str | Path,
    *,
    metrics: Mapping[str, object] | None = None,
    info: Mapping[str, object] | None = None,
    trained_on: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Save a model as an artifact directory and return its fingerprint.

    metrics: evaluation results for metrics.json and the model card, as data that JSON can represent
    info: further information for the manifest and the model card, as data that JSON can represent
    trained_on: int64 labels of the training rows, by which evaluation recognises data that the model was trained on
    """
    from mmtune.model.artifact.save import save as save_

    return save_(model, directory, metrics=metrics, info=info, trained_on=trained_on)


def similarity(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Compute the cosine similarities of all queries with all candidates: float32 [Q, C].

    queries: embeddings [Q, D], or a single one [D]
    candidates: embeddings [C, D], or a single one [D]

    Raises ModelError if the dimensions of queries and candidates differ.
    """
    from mmtune.model.similarity import cosine_similarity

    return cosine_similarity(queries, candidates)


def embed(
    model: Model | str,
    data: DataLike,
    out: str | Path,
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    dim: int | None = None,
    role: str | None = None,
    skip_bad: bool = False,
    read: Literal["index", "stream"] | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
) -> EmbedResult:
    """Embed data and write the embeddings to Parquet files with the columns id, group and vector.

    The files are OUT/<modality>/part-*.parquet, one per shard, and OUT/meta.json. Rows that lack a modality are counted, but not
    written. The function is resumable: files of the same model and shard content are kept. Several processes may run it at the
    same time on the same `out`: they share the shards, and each returns when all files are written.

    model: a `Model`, or what `mmtune.load` accepts
    data: what `mmtune.open_data` accepts (packed data by name, rows in memory), or opened data
    out: output directory; embeddings of another model in it are an error
    modalities: modalities to embed; None means all that both the model and the data have
    batch_size: batch size for encoding
    quiet: show no progress
    dim: truncate embeddings to this many dimensions and normalise them again (Matryoshka)
    role: prompt role for texts, e.g. "query"; None means that the texts are candidates
    skip_bad: count values that cannot be decoded as missing, with a DataWarning; by default the first one is a DataError
    read: "stream" reads the shards of `data` from start to end and writes while it reads, for data larger than the disk; "index" opens a
        table of all rows. None means "stream" for `pipe:COMMAND`, else "index"
    columns, id, group: for rows in memory, as in `mmtune.open_data`
    """
    set_openmp_wait_policy()
    if columns or id or group:
        from mmtune.data.in_memory import as_opened

        data = as_opened(data, columns=columns, id=id, group=group)
    from mmtune.data.shards.streamed_sets import is_streamed

    if is_streamed(data, read):
        from mmtune.embedding.stream_parts import embed_stream

        return embed_stream(model, data, out, modalities, batch_size, quiet, dim=dim, role=role, skip_bad=skip_bad)
    from mmtune.embedding.parquet_parts import embed as embed_

    return embed_(model, data, out, modalities, batch_size, quiet, dim=dim, role=role, skip_bad=skip_bad)
