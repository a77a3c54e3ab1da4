"""`mmtune index embed`: a collection's vectors by content, made by as many processes and machines as there are, before one of
them builds.

Blocks of rows of DATA are jobs; whoever holds a job's lock embeds what no vector is there of (`mmtune.runtime.work_lock`), and publishes
COLL/vectors/FINGERPRINT/MODALITY/NAME.safetensors whole. The collection's database is not opened (SQLite wants one machine),
so nothing is served or changed: `mmtune index build` then finds the vectors, and embeds what is still missing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities as kinds
from mmtune.embedding.embed_rows import embed_rows, shared_modalities
from mmtune.errors import DataError
from mmtune.index.layout import Layout
from mmtune.index.pinned_model import kept, narrowed
from mmtune.index.vector_cache import VectorCache
from mmtune.runtime.distributed import local_device
from mmtune.runtime.progress import Progress
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

ROWS = 4096  # of one shard, a job: what a kill can lose, and how many files there are


@dataclass(frozen=True)
class Job:
    """The vectors of these rows, as far as they are missing, go into the file `path`."""

    path: Path
    rows: np.ndarray


def embed_into_collection(
    collection: str | Path,
    model: "Model | str | Path | Mapping[str, str]",
    data: "Data | str",
    wanted: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    dim: int | None = None,
) -> dict[str, Any]:
    """Vectors of every content of `data` are in the collection when this returns, whoever made them.

    {"fingerprint", "dim", "counts": {modality: {"rows", "missing" (rows without it), "contents" (different ones), "embedded"
    (here, now)}}}. wanted: as `Collection.build`'s modalities. DataError, ModelError as there.
    """
    from mmtune.data.shards.dataset import open_data

    collection = Path(collection)
    manifest = collection / "collection.json"
    run_jobs_once([manifest], lambda p: p, Path.exists, _new)
    rows = open_data(data) if isinstance(data, str) else data
    found = kept(collection, narrowed(model, dim)).to(local_device())
    both = shared_modalities(found, rows, wanted)
    names = both if wanted else kinds.non_language(both)
    held = VectorCache(collection / "vectors" / found.fingerprint, found.fingerprint, found.dim)
    counts = {m: _embed_modality(found, rows, m, held, batch_size, quiet) for m in names}
    return {"fingerprint": found.fingerprint, "dim": found.dim, "counts": counts}


def _embed_modality(
    model: "Model", data: "Data", modality: str, held: VectorCache, batch_size: int, quiet: bool
) -> dict[str, int]:
    """The counts of one modality, once all its vectors are there."""
    rows, labels = np.flatnonzero(data.present[modality]), data.labels[modality]
    unique = rows[np.sort(np.unique(labels[rows], return_index=True)[1])]
    counts = {"rows": len(rows), "missing": len(data) - len(rows), "contents": len(unique), "embedded": 0}
    known = ~held.missing(modality, labels)
    with Progress(f"embed {modality}", int((~known[unique]).sum()), quiet=quiet) as progress:

        def make(job: Job) -> None:
            new = job.rows[~known[job.rows]]
            held.write(
                modality,
                labels[new],
                embed_rows(model, data, modality, new, batch_size=batch_size, advance=progress.advance),
                job.path.stem,
            )
            counts["embedded"] += len(new)

        jobs = [j for j in _jobs(data, labels, unique, held.directory / modality) if not known[j.rows].all()]
        run_jobs_once(jobs, lambda j: j.path, lambda j: j.path.exists(), make)
    if held.missing(modality, labels[rows]).any():
        raise DataError(f"{held.directory / modality}: files were removed while they were made; run this again")
    return counts


def _new(manifest: Path) -> None:
    Layout(manifest.parent, create=True)


def _jobs(data: "Data", labels: np.ndarray, rows: np.ndarray, directory: Path) -> list[Job]:
    """Ascending `rows` by shard, in blocks. A job's name says which contents it is about: everyone gives it the same."""
    jobs = []
    for shard in data.shards:
        start, stop = np.searchsorted(rows, [shard.start, shard.start + shard.count])
        for at in range(start, stop, ROWS):
            part = rows[at : min(at + ROWS, stop)]
            name = hashlib.sha256(np.ascontiguousarray(labels[part]).tobytes()).hexdigest()[:32]
            jobs.append(Job(directory / f"{name}.safetensors", part))
    return jobs
