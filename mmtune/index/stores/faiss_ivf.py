"""Build an IVF-PQ index of more vectors than fit in memory: train on a sample, add the vectors in parts, merge on disk.

    STEM.trained.index      coarse centroids and PQ codebooks, without vectors
    STEM.part-00000.index   codes of at most PART rows
    STEM.index              all codes, sorted by inverted list; memory-mapped for searches
Every file is published atomically. STEM.index is published last, and the other files are then removed. The build is
resumable: after an interruption it reuses the finished files. Several processes may build the same STEM at the same time; they
share the parts (see `mmtune.runtime.work_lock`) and the result is the same as that of one process.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np

from mmtune.errors import DataError
from mmtune.index.stores.import_faiss import import_faiss, write_index
from mmtune.runtime.files import atomic_open
from mmtune.runtime.work_lock import run_jobs_once

PART = 1 << 20
"""Most rows of one part."""
BLOCK = 65_536
"""Most vectors that are read at once."""
SAMPLE_BLOCK = 8192
"""Training vectors that are read at once."""
DEFAULT_MEMORY_MB = 1024
MIN_MEMORY_MB = 64
EMPTY_LISTS = 32
"""Length in bytes of the (empty) inverted lists at the end of a serialised index without vectors: the tag "ilar", two sizes,
the tag "sprs", and a length of 0."""
VECTORS_PER_CELL, CENTROIDS = 39, 256
"""Training vectors per centroid that faiss recommends, and the number of centroids of an 8-bit code."""

Projection = Callable[[np.ndarray], np.ndarray]
"""Maps vectors [n, D] to the dimensions that the index holds [n, width]."""


class IvfSettings(TypedDict, total=False):
    """Settings of an IVF-PQ index.

    cells: number of inverted lists (faiss: nlist).
    sample: number of training vectors.
    memory_mb: memory limit for building the index, in MB.
    """

    cells: int
    sample: int
    memory_mb: int


def plan_ivf(count: int, dim: int, cells: int, memory_mb: int | None) -> IvfSettings:
    """Choose settings with which building needs at most `memory_mb` MB (default: DEFAULT_MEMORY_MB).

    The limit does not count the ids and the memory-mapped vectors. Half of the memory is for the training sample, a quarter
    for the codes of one part. Little memory means a small training sample, and therefore fewer inverted lists.
    """
    memory = memory_mb or DEFAULT_MEMORY_MB
    if memory < MIN_MEMORY_MB:
        raise DataError(f"memory_mb {memory}: an ivfpq index is built in {MIN_MEMORY_MB} MB or more")
    sample = min(count, max(64 * cells, 50_000), (memory << 19) // (4 * dim))  # memory << 19: half of it, in bytes
    needed = VECTORS_PER_CELL * CENTROIDS
    if sample < needed:
        raise DataError(
            f"memory_mb {memory}: holds only {sample} training vectors of {dim} dimensions, and {needed} are needed; "
            "raise memory_mb"
        )
    return {"cells": min(cells, sample // VECTORS_PER_CELL), "sample": sample, "memory_mb": memory}


def build_ivf(vectors_ND: np.ndarray, settings: IvfSettings, codes: int, stem: Path, project: Projection, width: int) -> None:
    """Build STEM.index over all (memory-mapped) vectors.

    codes: bytes per vector.
    project: maps vectors to the `width` dimensions that the index holds.
    """
    final = stem.with_name(f"{stem.name}.index")
    trained = stem.with_name(f"{stem.name}.trained.index")
    memory = settings["memory_mb"] << 20
    block = max(1024, min(BLOCK, memory // 32 // (4 * vectors_ND.shape[1])))
    size = max(block, min(PART, memory // 4 // (2 * (codes + 8)) // block * block))  # lists grow by doubling
    starts = list(range(0, len(vectors_ND), size))

    def part(start: int) -> Path:
        return stem.with_name(f"{stem.name}.part-{start // size:05d}.index")

    def add(start: int) -> None:
        index, stop = import_faiss().read_index(str(trained)), min(start + size, len(vectors_ND))
        for at in range(start, stop, block):
            end = min(at + block, stop)
            index.add_with_ids(project(vectors_ND[at:end]), np.arange(at, end))
        write_index(index, part(start))

    run_jobs_once(
        [trained],
        lambda p: p,
        lambda p: p.exists() or final.exists(),
        lambda p: _train(vectors_ND, settings, codes, p, project, width),
    )
    run_jobs_once(starts, part, lambda s: part(s).exists() or final.exists(), add)
    run_jobs_once([final], lambda p: p, Path.exists, lambda p: _merge(trained, [part(s) for s in starts], p))
    for path in (trained, *map(part, starts)):
        path.unlink(missing_ok=True)


def _train(vectors_ND: np.ndarray, settings: IvfSettings, codes: int, path: Path, project: Projection, width: int) -> None:
    faiss = import_faiss()
    index = faiss.index_factory(width, f"IVF{settings['cells']},PQ{codes}np", faiss.METRIC_INNER_PRODUCT)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors_ND), settings["sample"], replace=False))
    sample = np.empty((len(rows), width), np.float32)
    for at in range(0, len(rows), SAMPLE_BLOCK):
        sample[at : at + SAMPLE_BLOCK] = project(vectors_ND[rows[at : at + SAMPLE_BLOCK]])
    index.train(sample)
    write_index(index, path)


def _merge(trained: Path, parts: list[Path], final: Path) -> None:
    """Merge the parts into one index file: for each inverted list, concatenate the lists of all parts.

    The parts are memory-mapped and the result is streamed to disk. The file has faiss's own format, as `write_index` would
    write it from memory, and faiss reads it back at the end as a check. faiss's OnDiskInvertedLists are not used: they need a
    second file, so publishing would not be atomic, and faiss 1.15.1 crashes when it memory-maps them.
    """
    faiss = import_faiss()
    index = faiss.read_index(str(trained))
    opened = [faiss.read_index(str(p), faiss.IO_FLAG_MMAP) for p in parts]
    lists = [one.invlists for one in opened]
    index.ntotal = sum(one.ntotal for one in opened)
    head = faiss.serialize_index(index).tobytes()
    assert head[-EMPTY_LISTS:][:4] == b"ilar", head[-EMPTY_LISTS:]
    sizes = np.array([[x.list_size(cell) for x in lists] for cell in range(index.nlist)], np.uint64)
    with atomic_open(final) as f:
        f.write(head[:-EMPTY_LISTS] + b"ilar" + np.array([index.nlist, index.code_size], np.uint64).tobytes())
        f.write(b"full" + np.uint64(index.nlist).tobytes() + sizes.sum(1, dtype=np.uint64).tobytes())
        for cell, counts in enumerate(sizes.tolist()):
            for read, width in (("get_codes", index.code_size), ("get_ids", 1)):
                for x, n in zip(lists, counts, strict=True):
                    if n:
                        f.write(faiss.rev_swig_ptr(getattr(x, read)(cell), n * width).data)
        f.flush()
        name = f"/dev/fd/{f.fileno()}" if os.name != "nt" else f.name
        merged = faiss.read_index(name, faiss.IO_FLAG_MMAP)
        assert merged.ntotal == merged.invlists.compute_ntotal() == index.ntotal, (merged.ntotal, index.ntotal)
