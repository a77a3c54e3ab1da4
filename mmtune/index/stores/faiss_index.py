"""Build and search approximate faiss indexes over the base segment. The store re-ranks their candidates with exact scores.

    flat     exact search without an index file
    hnsw     HNSW graph, held in memory
    ivfpq    inverted lists of product-quantised 8-bit codes, for vectors that do not fit in memory (see `faiss_ivf`)
With `search_dim`, the index holds only the first `search_dim` dimensions, L2-normalised again (a Matryoshka prefix, arXiv
2205.13147). Candidates found with the prefix are re-ranked with the full vectors.
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
"""Largest N * D (vectors times dimensions) for which "auto" chooses exact search. On a busy two-core machine, one query took
21 ms at N * D = 13 million and 89 ms at 51 million."""
MAX_HNSW_ITEMS = 2_000_000
"""An HNSW index holds its vectors in memory, so "auto" chooses ivfpq for more vectors than this."""
MIN_ITEMS_FOR_CODES = 10_000
"""Fewest vectors for which ivfpq is built: faiss recommends 39 training vectors for each of the 256 centroids of a code."""
VECTORS_PER_LIST = 40
"""Fewest vectors per inverted list, on average."""
BATCH = 65_536
"""Vectors added to an index at once."""
FEW_EXCLUDED = 64
"""Up to this many rows excluded by a filter, it is cheaper to search for more results and to drop the excluded ones."""
FILTERED_BATCH = 131_072
"""Rows that are copied and searched at once when a filter excludes many rows."""


class FaissIndexSettings(IvfSettings, total=False):
    """Settings of an index that was built.

    index: flat, hnsw or ivfpq.
    m: links per node of the HNSW graph.
    construction: efConstruction of the HNSW graph.
    search: smallest efSearch of the HNSW graph.
    codes: bytes per vector of an ivfpq index.
    probes: nprobe of an ivfpq index.
    search_dim: number of leading dimensions in the index; absent when the index holds all dimensions.
    note: why another index than the requested one was built.
    """

    index: str
    m: int
    construction: int
    search: int
    codes: int
    probes: int
    search_dim: int
    note: str


def plan_index(index: str, count: int, dim: int, memory_mb: int | None = None) -> FaissIndexSettings:
    """Choose the settings of `index` for `count` vectors of `dim` dimensions.

    memory_mb: memory limit for building an ivfpq index, in MB.

    Raises DataError for an unknown index type.
    """
    if index == "auto":
        index = "flat" if count * dim <= MAX_FLAT_NUMBERS else "hnsw" if count <= MAX_HNSW_ITEMS else "ivfpq"
    if index == "hnsw":
        return {"index": "hnsw", "m": 32, "construction": 200, "search": 192}
    if index == "ivfpq":
        if count < MIN_ITEMS_FOR_CODES:
            note = f"{count} vectors are too few to train codes ({MIN_ITEMS_FOR_CODES}): exact search"
            return {"index": "flat", "note": note}
        # One code byte per four or more dimensions; product quantisation needs a divisor of `dim`.
        codes = next(c for c in range(max(1, dim // 4), 0, -1) if dim % c == 0)
        # faiss recommends 4 * sqrt(N) or more lists; small lists cost more than they save.
        lists = int(min(65_536, 4 * math.sqrt(count), count // VECTORS_PER_LIST))
        ivf = plan_ivf(count, dim, lists, memory_mb)
        return {"index": "ivfpq", "codes": codes, "probes": max(16, ivf["cells"] // 8), **ivf}
    if index == "flat":
        return {"index": "flat"}
    raise DataError(f"no index {index!r}; choose auto, flat, hnsw or ivfpq")


def prefix(vectors_ND: np.ndarray, search_dim: int | None) -> np.ndarray:
    """Return the first `search_dim` dimensions, L2-normalised. None means all dimensions, unchanged."""
    return vectors_ND if search_dim is None else normalize_rows(vectors_ND[:, :search_dim])


def make_index(vectors_ND: np.ndarray, settings: FaissIndexSettings, stem: Path) -> None:
    """Build the index that `settings` describe and write it to STEM.index atomically.

    If another process is building the same index, wait for it.
    """
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
    """Build an hnsw index, or a flat index over the first `search_dim` dimensions."""
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
    """A faiss index opened from its file. The lists and codes of an ivfpq index stay on disk and are memory-mapped."""

    def __init__(self, path: Path, settings: FaissIndexSettings):
        faiss = import_faiss()
        self.settings = settings
        mapped = faiss.IO_FLAG_MMAP if settings["index"] == "ivfpq" else getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        self.index = faiss.read_index(str(path), mapped)
        if settings["index"] == "ivfpq":  # otherwise faiss starts 32 prefetch threads per search, even for cached pages
            faiss.downcast_InvertedLists(self.index.invlists).prefetch_nthread = 0

    def candidates(self, query_QD: np.ndarray, width: int, mask: np.ndarray | None) -> np.ndarray:
        """Return positions [Q, width] of the best candidates; -1 fills the row when fewer are found.

        mask: bool [N], True for the positions that may be returned; None means all positions.
        """
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
        """Return how many candidates to fetch for k results: more for codes and prefixes, whose scores are coarse."""
        coarse = self.settings["index"] == "ivfpq" or self.settings.get("search_dim")
        return max(200, 20 * k) if coarse else max(2 * k, k + 32)


ScoredPositions = list[tuple[float, int]]
"""Pairs (score, position): score descending, ties by position ascending."""


def exact_search(query_QD: np.ndarray, vectors_ND: np.ndarray, k: int, mask: np.ndarray | None) -> list[ScoredPositions]:
    """Return the k best rows of each query where `mask` is True (None: all rows), ties by position ascending."""
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
