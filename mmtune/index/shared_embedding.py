"""`mmtune index embed`: vectors of a collection's contents, embedded by many processes and machines before one of them builds.

Blocks of rows of DATA are jobs; the process that holds a job's lock embeds the contents that have no vector yet
(`mmtune.runtime.work_lock`) and publishes COLL/vectors/FINGERPRINT/MODALITY/NAME.safetensors atomically. The collection's
database is not opened (SQLite wants one machine), so nothing is served or changed: `mmtune index build` then finds the
vectors, and embeds what is still missing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.embedding.embed_rows import embed_rows, shared_modalities
from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import CollectionResult
from mmtune.index.pinned_model import load_for_embedding, pin_model
from mmtune.index.vector_cache import VectorCache
from mmtune.runtime.distributed import local_device
from mmtune.runtime.progress import Progress
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.pinned_model import ModelSpec
    from mmtune.model.dual_encoder import Model

ROWS = 4096
"""Rows of one shard per job: what a kill can lose."""


@dataclass(frozen=True)
class EmbeddingJob:
    """The vectors of these rows, as far as they are missing, go into the file `path`."""

    path: Path
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class EmbeddingCounts(CollectionResult):
    """Of one modality: rows that have it, rows that lack it, distinct contents, contents embedded by this process now."""

    rows: int
    missing: int
    contents: int
    embedded: int


@dataclass(frozen=True, eq=False)
class SharedEmbeddingResult(CollectionResult):
    """What `mmtune index embed` made; counts: by modality."""

    fingerprint: str
    dim: int
    counts: Mapping[str, EmbeddingCounts]


def embed_into_collection(
    collection: str | Path,
    model: "ModelSpec",
    data: "Data | str",
    wanted: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    dim: int | None = None,
) -> SharedEmbeddingResult:
    """Embed every content of `data`; the vectors are in the collection when this returns, whichever process made them.

    wanted: modalities, as in `Collection.build`. DataError, ModelError as there.
    """
    from mmtune.data.shards.dataset import open_data

    collection = Path(collection)
    manifest = collection / "collection.json"
    run_jobs_once([manifest], lambda p: p, Path.exists, _create_collection)
    rows = open_data(data) if isinstance(data, str) else data
    pinned = pin_model(collection, load_for_embedding(model, dim)).to(local_device())
    both = shared_modalities(pinned, rows, wanted)
    names = both if wanted else modalities.non_language(both)
    cache = VectorCache(collection / "vectors" / pinned.fingerprint, pinned.fingerprint, pinned.dim)
    counts = {m: _embed_modality(pinned, rows, m, cache, batch_size, quiet) for m in names}
    return SharedEmbeddingResult(pinned.fingerprint, pinned.dim, counts)


def _embed_modality(
    model: "Model", data: "Data", modality: str, cache: VectorCache, batch_size: int, quiet: bool
) -> EmbeddingCounts:
    """The counts of one modality, once all its vectors exist."""
    rows, labels = np.flatnonzero(data.present[modality]), data.labels[modality]
    unique = rows[np.sort(np.unique(labels[rows], return_index=True)[1])]
    known = ~cache.missing(modality, labels)
    embedded = 0
    with Progress(f"embed {modality}", int((~known[unique]).sum()), quiet=quiet) as progress:

        def make(job: EmbeddingJob) -> None:
            nonlocal embedded
            new = job.rows[~known[job.rows]]
            vectors_ND = embed_rows(model, data, modality, new, batch_size=batch_size, advance=progress.advance)
            cache.write(modality, labels[new], vectors_ND, job.path.stem)
            embedded += len(new)

        jobs = [j for j in _jobs(data, labels, unique, cache.directory / modality) if not known[j.rows].all()]
        run_jobs_once(jobs, lambda j: j.path, lambda j: j.path.exists(), make)
    if cache.missing(modality, labels[rows]).any():
        raise DataError(f"{cache.directory / modality}: files were removed while they were made; run this again")
    return EmbeddingCounts(len(rows), len(data) - len(rows), len(unique), embedded)


def _create_collection(manifest: Path) -> None:
    CollectionLayout(manifest.parent, create=True)


def _jobs(data: "Data", labels: np.ndarray, rows: np.ndarray, directory: Path) -> list[EmbeddingJob]:
    """Ascending `rows` by shard, in blocks. A job is named by its contents, so that every process gives it the same name."""
    jobs = []
    for shard in data.shards:
        start, stop = np.searchsorted(rows, [shard.start, shard.start + shard.count])
        for at in range(start, stop, ROWS):
            part = rows[at : min(at + ROWS, stop)]
            name = hashlib.sha256(np.ascontiguousarray(labels[part]).tobytes()).hexdigest()[:32]
            jobs.append(EmbeddingJob(directory / f"{name}.safetensors", part))
    return jobs
