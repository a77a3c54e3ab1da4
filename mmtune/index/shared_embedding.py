"""`mmtune index embed`: embed data into a collection's vector cache with many processes on one or more machines.

The rows of DATA are split into jobs. The process that holds the lock of a job (`mmtune.runtime.work_lock`) embeds the contents
that are not cached yet, and writes COLL/vectors/FINGERPRINT/MODALITY/NAME.safetensors atomically. The items and versions of the
collection do not change: its SQLite database is not even opened, because SQLite must not be shared between machines. Run
`mmtune index build` afterwards; it reuses the cached vectors and embeds only what is missing.
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
from mmtune.runtime.devices import local_device
from mmtune.runtime.progress import Progress
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.pinned_model import ModelSpec
    from mmtune.model.dual_encoder import Model

ROWS = 4096
"""Most rows per job. An interruption loses at most the work of one job per process."""


@dataclass(frozen=True)
class EmbeddingJob:
    """Embed the rows (row numbers) that are not cached yet and write their vectors to the file `path`."""

    path: Path
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class EmbeddingCounts(CollectionResult):
    """Counts for one modality.

    rows, missing: rows that have the modality, and rows that do not.
    contents: distinct contents among the rows.
    embedded: contents that this process embedded during this call.
    """

    rows: int
    missing: int
    contents: int
    embedded: int


@dataclass(frozen=True, eq=False)
class SharedEmbeddingResult(CollectionResult):
    """The result of `mmtune index embed`: fingerprint and dimension of the model, and the counts by modality."""

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
    """Embed all contents of `data` into the vector cache of a collection, together with other processes that do the same.

    When this returns, all vectors are in the cache, whichever process embedded them. The collection is created if needed.

    model: a model in memory, a MODEL string, or one MODEL string per tower.
    wanted: modalities to embed; default: all that are not text, or text if the data has nothing else.
    dim: truncate the embeddings to this many dimensions (Matryoshka).
    """
    from mmtune.data.shards.dataset import open_data

    collection = Path(collection)
    manifest = collection / "collection.json"
    run_jobs_once([manifest], lambda p: p, Path.exists, _create_collection)
    rows = open_data(data) if isinstance(data, str) else data
    pinned = pin_model(collection, load_for_embedding(model, dim)).to(local_device())
    shared = shared_modalities(pinned, rows, wanted)
    names = shared if wanted else modalities.non_language(shared)
    cache = VectorCache(collection / "vectors" / pinned.fingerprint, pinned.fingerprint, pinned.dim)
    counts = {m: _embed_modality(pinned, rows, m, cache, batch_size, quiet) for m in names}
    return SharedEmbeddingResult(pinned.fingerprint, pinned.dim, counts)


def _embed_modality(
    model: "Model", data: "Data", modality: str, cache: VectorCache, batch_size: int, quiet: bool
) -> EmbeddingCounts:
    """Embed one modality. Returns when all its vectors exist, also those that other processes embed."""
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
        raise DataError(f"{cache.directory / modality}: files were removed during the embedding; run the command again")
    return EmbeddingCounts(len(rows), len(data) - len(rows), len(unique), embedded)


def _create_collection(manifest: Path) -> None:
    CollectionLayout(manifest.parent, create=True)


def _jobs(data: "Data", labels: np.ndarray, rows: np.ndarray, directory: Path) -> list[EmbeddingJob]:
    """Split ascending row numbers into jobs: at most ROWS rows of one shard each.

    The file name of a job is a hash of its contents, so that all processes give it the same name.
    """
    jobs = []
    for shard in data.shards:
        start, stop = np.searchsorted(rows, [shard.start, shard.start + shard.count])
        for at in range(start, stop, ROWS):
            part = rows[at : min(at + ROWS, stop)]
            name = hashlib.sha256(np.ascontiguousarray(labels[part]).tobytes()).hexdigest()[:32]
            jobs.append(EmbeddingJob(directory / f"{name}.safetensors", part))
    return jobs
