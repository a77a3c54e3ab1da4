"""Inverted lists of product-quantised codes (IVF-PQ) for more vectors than memory: trained once on a sample, added in parts,
merged on disk.

    STEM.trained.index   cells and codebooks, without vectors
    STEM.part-00000.index   codes of PART rows or fewer
    STEM.index   all codes, list by list: searched mapped
Every file is published atomically; STEM.index is the last one, and then the others are removed. A killed build goes on from
the files that it finds, and processes that build the same STEM at the same time share the parts (see
`mmtune.runtime.work_lock`): the lists are the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np

from mmtune.errors import DataError
from mmtune.index.stores.import_faiss import import_faiss, write_index
from mmtune.runtime.files import atomic_open
from mmtune.runtime.work_lock import run_jobs_once

PART = 1 << 20
"""Rows of a part at most."""
BLOCK = 65_536
"""Vectors that are read at once, at most."""
SAMPLE_BLOCK = 8192
DEFAULT_MEMORY_MB = 1024
MIN_MEMORY_MB = 64
EMPTY_LISTS = 32
"""Bytes with which a serialised index without vectors ends: "ilar", two sizes, "sprs", a length of 0."""
VECTORS_PER_CELL, CENTROIDS = 39, 256
"""What faiss wants: training vectors per cell, and the centroids of a code."""

Projection = Callable[[np.ndarray], np.ndarray]
"""vectors [n, D] -> the part of them that the index holds [n, width]."""


class IvfSettings(TypedDict, total=False):
    """cells: inverted lists; sample: vectors to train on; memory_mb: what building may take."""

    cells: int
    sample: int
    memory_mb: int


def plan_ivf(count: int, dim: int, cells: int, memory_mb: int | None) -> IvfSettings:
    """Settings that keep building within `memory_mb` (default DEFAULT_MEMORY_MB) beside the mapped vectors and the ids.

    Half of it is the sample, so that little memory means fewer cells; a quarter the codes of a part.
    """
    memory = memory_mb or DEFAULT_MEMORY_MB
    if memory < MIN_MEMORY_MB:
        raise DataError(f"memory_mb {memory}: an ivfpq index is built in {MIN_MEMORY_MB} MB or more")
    sample = min(count, max(64 * cells, 50_000), (memory << 19) // (4 * dim))
    needed = VECTORS_PER_CELL * CENTROIDS
    if sample < needed:
        raise DataError(f"memory_mb {memory}: only {sample} vectors of {dim} dims to train on, {needed} are needed; give more")
    return {"cells": min(cells, sample // VECTORS_PER_CELL), "sample": sample, "memory_mb": memory}


def build_ivf(vectors_ND: np.ndarray, settings: IvfSettings, codes: int, stem: Path, project: Projection, width: int) -> None:
    """Publish STEM.index over all vectors (mapped). codes: bytes of a code."""
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
    """One file with the parts' lists one after the other, cell by cell, from mapped files into a stream.

    It is faiss's own format, as `write_index` would write it from memory; faiss's reader checks it at the end. (Its
    OnDiskInvertedLists need a second file, cannot be published in one step, and 1.15.1 crashes when it maps them.)
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
        merged = faiss.read_index(f"/dev/fd/{f.fileno()}", faiss.IO_FLAG_MMAP)
        assert merged.ntotal == merged.invlists.compute_ntotal() == index.ntotal, (merged.ntotal, index.ntotal)
