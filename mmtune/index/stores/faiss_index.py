"""Proposals of an approximate index over the base's vectors; the store scores them again, exactly, with the whole vectors.

flat: none (exact search). hnsw: a graph. ivfpq: cells and 8-bit codes, for what does not fit in memory (see `faiss_ivf`).
`short`: the index holds only the first dimensions (of unit length again), a Matryoshka prefix (arXiv 2205.13147): search
short, re-rank full.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.errors import DataError
from mmtune.index.stores.faiss_ivf import make_lists, plan_lists
from mmtune.index.stores.import_faiss import faiss, write_index
from mmtune.runtime.work_lock import run_jobs_once
from mmtune.search.exact import topk
from mmtune.search.vectors import unit

FLAT_NUMBERS = (
    20_000_000  # numbers (N * D): one query took 21 ms over 13 million and 89 over 51, on a busy machine of two cores
)
HNSW_ITEMS = 2_000_000  # a graph keeps its vectors in memory: beyond this, codes
FEW_FOR_CODES = 10_000  # 256 centroids of a code want 39 vectors each


def plan_index(index: str, count: int, dim: int, memory_mb: int | None = None) -> dict[str, Any]:
    """What `index` means for so many vectors: {"index", settings...}. memory_mb: what ivfpq may take to build."""
    if index == "auto":
        index = "flat" if count * dim <= FLAT_NUMBERS else "hnsw" if count <= HNSW_ITEMS else "ivfpq"
    if index == "hnsw":
        return {"index": "hnsw", "m": 32, "construction": 200, "search": 192}
    if index == "ivfpq":
        if count < FEW_FOR_CODES:
            return {"index": "flat", "note": f"{count} vectors are too few to train codes ({FEW_FOR_CODES}): exact search"}
        codes = next(c for c in range(max(1, dim // 4), 0, -1) if dim % c == 0)
        cells = int(min(65_536, 4 * math.sqrt(count), count // 40))  # faiss asks for 39 vectors a cell
        lists = plan_lists(count, dim, cells, memory_mb)
        return {"index": "ivfpq", "codes": codes, "probes": max(16, lists["cells"] // 8), **lists}
    if index == "flat":
        return {"index": "flat"}
    raise DataError(f"no index {index!r}; there are: auto, flat, hnsw, ivfpq")


def _short(vectors_ND: np.ndarray, short: int | None) -> np.ndarray:
    return vectors_ND if short is None else unit(vectors_ND[:, :short])


def make_index(vectors_ND: np.ndarray, settings: dict[str, Any], stem: Path) -> None:
    """Build what `settings` say over all vectors, and publish it as STEM.index; what another process does is waited for."""
    short = settings.get("short")
    width = short or vectors_ND.shape[1]
    if settings["index"] == "ivfpq":
        make_lists(vectors_ND, settings, stem, lambda x: _short(x, short), width)
    else:
        final = stem.with_name(f"{stem.name}.index")
        run_jobs_once([final], lambda p: p, Path.exists, lambda p: _make_whole(vectors_ND, settings, p, short, width))


def _make_whole(vectors_ND: np.ndarray, settings: dict[str, Any], path: Path, short: int | None, width: int) -> None:
    lib = faiss()
    if settings["index"] == "hnsw":
        index = lib.IndexHNSWFlat(width, settings["m"], lib.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings["construction"]
    else:
        index = lib.IndexFlatIP(width)
    for start in range(0, len(vectors_ND), 65_536):
        index.add(_short(vectors_ND[start : start + 65_536], short))
    write_index(index, path)


class Proposer:
    """An index that was read from its file; inverted lists and codes stay on disk, mapped."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        lib = faiss()
        self.settings = settings
        mapped = lib.IO_FLAG_MMAP if settings["index"] == "ivfpq" else getattr(lib, "IO_FLAG_MMAP_IFC", 0)
        self.index = lib.read_index(str(path), mapped)
        if settings["index"] == "ivfpq":  # 32 threads a search otherwise, whether the pages are in memory or not
            lib.downcast_InvertedLists(self.index.invlists).prefetch_nthread = 0

    def __call__(self, query_QD: np.ndarray, width: int, mask: np.ndarray | None) -> np.ndarray:
        """Positions [Q, width] of the best, -1 where there are fewer; `mask` [N] admits candidates."""
        lib, kind = faiss(), self.settings["index"]
        options: dict[str, Any] = {}
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            options["sel"] = lib.IDSelectorBitmap(len(mask), lib.swig_ptr(bits))
        if kind == "hnsw":
            params = lib.SearchParametersHNSW(efSearch=max(self.settings["search"], 2 * width), **options)
        elif kind == "ivfpq":
            params = lib.SearchParametersIVF(nprobe=self.settings["probes"], **options)
        else:
            params = lib.SearchParameters(**options)
        query = np.ascontiguousarray(_short(query_QD, self.settings.get("short")), np.float32)
        return self.index.search(query, width, params=params)[1]

    def width(self, k: int) -> int:
        """How many proposals k answers need: codes and prefixes are coarse."""
        coarse = self.settings["index"] == "ivfpq" or self.settings.get("short")
        return max(200, 20 * k) if coarse else max(2 * k, k + 32)


def exact(query_QD: np.ndarray, vectors_ND: np.ndarray, k: int, mask: np.ndarray | None) -> list[list[tuple[float, int]]]:
    """(score, position) of the k best admitted candidates of every query, in the total order (position breaks ties)."""
    if mask is None or mask.all():
        return _pairs(*topk(query_QD, vectors_ND, k))
    out = mask.size - int(mask.sum())
    if out <= 64:
        found = _pairs(*topk(query_QD, vectors_ND, k + out))
        return [[(s, p) for s, p in best if mask[p]][:k] for best in found]
    rows = np.flatnonzero(mask)
    merged: list[list[tuple[float, int]]] = [[] for _ in range(len(query_QD))]
    for start in range(0, len(rows), 131_072):
        part = rows[start : start + 131_072]
        for best, (scores, at) in zip(merged, zip(*topk(query_QD, vectors_ND[part], k), strict=True), strict=True):
            best += zip(scores.tolist(), part[at].tolist(), strict=True)
    return [sorted(best, key=lambda x: (-x[0], x[1]))[:k] for best in merged]


def _pairs(scores: np.ndarray, index: np.ndarray) -> list[list[tuple[float, int]]]:
    return [list(zip(s, i, strict=True)) for s, i in zip(scores.tolist(), index.tolist(), strict=True)]
