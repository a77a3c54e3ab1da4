"""Approximate faiss indexes over the base's vectors; the store scores their candidates again, exactly, with the whole vectors.

flat: none (exact search). hnsw: a graph. ivfpq: inverted lists of 8-bit codes, for what does not fit in memory (see
`faiss_ivf`). search_dim: the index holds only the first dimensions (of unit length again), a Matryoshka prefix (arXiv
2205.13147): search by the prefix, re-rank by the whole vectors.
"""

import math
from pathlib import Path

import numpy as np

from mmtune.errors import DataError
from mmtune.index.stores.faiss_ivf import IvfSettings, build_ivf, plan_ivf
from mmtune.index.stores.import_faiss import import_faiss, write_index
from mmtune.runtime.work_lock import run_jobs_once
from mmtune.search.exact import topk
from mmtune.search.vectors import normalize_rows

MAX_FLAT_NUMBERS = 20_000_000
"""Numbers (N * D) that "auto" searches exactly: one query took 21 ms over 13 million and 89 ms over 51 million, on a busy
machine of two cores."""
MAX_HNSW_ITEMS = 2_000_000
"""A graph keeps its vectors in memory: beyond this, "auto" takes codes."""
MIN_ITEMS_FOR_CODES = 10_000
"""The 256 centroids of a code want 39 vectors each."""
VECTORS_PER_LIST = 40
BATCH = 65_536
FEW_EXCLUDED = 64
"""So few candidates that a filter excludes are removed from a longer list of results."""
FILTERED_BATCH = 131_072


class FaissIndexSettings(IvfSettings, total=False):
    """What was built. index: flat, hnsw or ivfpq; m, construction, search: of the graph; codes, probes: of ivfpq."""

    index: str
    m: int
    construction: int
    search: int
    codes: int
    probes: int
    search_dim: int
    note: str


def plan_index(index: str, count: int, dim: int, memory_mb: int | None = None) -> FaissIndexSettings:
    """What `index` means for so many vectors. memory_mb: what building ivfpq may take. DataError for an unknown index."""
    if index == "auto":
        index = "flat" if count * dim <= MAX_FLAT_NUMBERS else "hnsw" if count <= MAX_HNSW_ITEMS else "ivfpq"
    if index == "hnsw":
        return {"index": "hnsw", "m": 32, "construction": 200, "search": 192}
    if index == "ivfpq":
        if count < MIN_ITEMS_FOR_CODES:
            note = f"{count} vectors are too few to train codes ({MIN_ITEMS_FOR_CODES}): exact search"
            return {"index": "flat", "note": note}
        codes = next(c for c in range(max(1, dim // 4), 0, -1) if dim % c == 0)
        lists = int(min(65_536, 4 * math.sqrt(count), count // VECTORS_PER_LIST))
        ivf = plan_ivf(count, dim, lists, memory_mb)
        return {"index": "ivfpq", "codes": codes, "probes": max(16, ivf["cells"] // 8), **ivf}
    if index == "flat":
        return {"index": "flat"}
    raise DataError(f"no index {index!r}; there are: auto, flat, hnsw, ivfpq")


def prefix(vectors_ND: np.ndarray, search_dim: int | None) -> np.ndarray:
    """The first `search_dim` dimensions, of unit length; None: the vectors themselves."""
    return vectors_ND if search_dim is None else normalize_rows(vectors_ND[:, :search_dim])


def make_index(vectors_ND: np.ndarray, settings: FaissIndexSettings, stem: Path) -> None:
    """Build what `settings` say over all vectors, and publish it as STEM.index; another process that builds it is waited
    for."""
    search_dim = settings.get("search_dim")
    width = search_dim or vectors_ND.shape[1]
    if settings["index"] == "ivfpq":
        build_ivf(vectors_ND, settings, settings["codes"], stem, lambda x: prefix(x, search_dim), width)
    else:
        final = stem.with_name(f"{stem.name}.index")
        run_jobs_once([final], lambda p: p, Path.exists, lambda p: _build_in_memory(vectors_ND, settings, p, search_dim, width))


def _build_in_memory(
    vectors_ND: np.ndarray, settings: FaissIndexSettings, path: Path, search_dim: int | None, width: int
) -> None:
    """hnsw, or flat over a prefix."""
    faiss = import_faiss()
    if settings["index"] == "hnsw":
        index = faiss.IndexHNSWFlat(width, settings["m"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings["construction"]
    else:
        index = faiss.IndexFlatIP(width)
    for start in range(0, len(vectors_ND), BATCH):
        index.add(prefix(vectors_ND[start : start + BATCH], search_dim))
    write_index(index, path)


class CandidateIndex:
    """An index read from its file; inverted lists and codes stay on disk, mapped."""

    def __init__(self, path: Path, settings: FaissIndexSettings):
        faiss = import_faiss()
        self.settings = settings
        mapped = faiss.IO_FLAG_MMAP if settings["index"] == "ivfpq" else getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        self.index = faiss.read_index(str(path), mapped)
        if settings["index"] == "ivfpq":  # 32 threads a search otherwise, whether the pages are in memory or not
            faiss.downcast_InvertedLists(self.index.invlists).prefetch_nthread = 0

    def candidates(self, query_QD: np.ndarray, width: int, mask: np.ndarray | None) -> np.ndarray:
        """Positions [Q, width] of the best, -1 where there are fewer; `mask` [N] admits positions."""
        faiss, kind = import_faiss(), self.settings["index"]
        selector = None
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        options = {} if selector is None else {"sel": selector}
        if kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(self.settings["search"], 2 * width), **options)
        elif kind == "ivfpq":
            params = faiss.SearchParametersIVF(nprobe=self.settings["probes"], **options)
        else:
            params = faiss.SearchParameters(**options)
        query = np.ascontiguousarray(prefix(query_QD, self.settings.get("search_dim")), np.float32)
        return self.index.search(query, width, params=params)[1]

    def width(self, k: int) -> int:
        """How many candidates k results need: codes and prefixes are coarse."""
        coarse = self.settings["index"] == "ivfpq" or self.settings.get("search_dim")
        return max(200, 20 * k) if coarse else max(2 * k, k + 32)


ScoredPositions = list[tuple[float, int]]
"""(score, position), in the total order."""


def exact_search(query_QD: np.ndarray, vectors_ND: np.ndarray, k: int, mask: np.ndarray | None) -> list[ScoredPositions]:
    """The k best admitted candidates of every query; the position breaks ties."""
    if mask is None or mask.all():
        return _pairs(*topk(query_QD, vectors_ND, k))
    excluded = mask.size - int(mask.sum())
    if excluded <= FEW_EXCLUDED:
        longer = _pairs(*topk(query_QD, vectors_ND, k + excluded))
        return [[(s, p) for s, p in best if mask[p]][:k] for best in longer]
    rows = np.flatnonzero(mask)
    merged: list[ScoredPositions] = [[] for _ in range(len(query_QD))]
    for start in range(0, len(rows), FILTERED_BATCH):
        part = rows[start : start + FILTERED_BATCH]
        for best, (scores, at) in zip(merged, zip(*topk(query_QD, vectors_ND[part], k), strict=True), strict=True):
            best += zip(scores.tolist(), part[at].tolist(), strict=True)
    return [sorted(best, key=lambda x: (-x[0], x[1]))[:k] for best in merged]


def _pairs(scores: np.ndarray, positions: np.ndarray) -> list[ScoredPositions]:
    return [list(zip(s, p, strict=True)) for s, p in zip(scores.tolist(), positions.tolist(), strict=True)]
