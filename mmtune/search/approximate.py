"""Approximate nearest candidates, for sets that are too large for exact search: faiss HNSW or IVF with 8-bit codes.

The candidates that the faiss index proposes are scored again exactly, so their scores and order are correct. Candidates that
the index does not propose are missed. The mining audit reports the recall, measured against exact search on a sample of
queries.
"""

import numpy as np

from mmtune.search.exact_scores import pair_keys
from mmtune.search.faiss_library import import_faiss
from mmtune.search.pair_set import PairSet
from mmtune.search.tie_order import top_k_of_pairs
from mmtune.search.vectors import GatheredRows

ADD_BLOCK = 65536
"""Number of vectors added to the index at a time."""
TRAIN_PER_LIST = 64
"""Number of training vectors per IVF list."""
MAX_PROPOSALS = 2048
"""Maximum number of candidates per query; the limit of faiss on a GPU."""


class ApproximateSearch:
    """Approximate search with the interface of `ExactSearch`; only candidates that the faiss index proposes are found.

    method: "hnsw" or "ivf"
    probes: number of IVF lists searched per query (nprobe); HNSW's efSearch is 4 times this number
    device: "cuda..." searches an IVF index on the GPUs, if faiss supports them
    k: number of candidates per query
    block: maximum number of queries per call of `top`
    """

    def __init__(
        self,
        candidates: np.ndarray | GatheredRows,
        method: str,
        probes: int,
        device: str = "cpu",
        k: int = 64,
        block: int = 1024,
    ):
        self.name, self.candidates, self.k, self.block = method, candidates, k, block
        faiss = import_faiss()
        n, dim = candidates.shape
        inner, eight_bits = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
        lists = int(max(1, min(4 * n**0.5, n / 39)))  # faiss warns below 39 training vectors per list
        if method == "hnsw":
            index = faiss.IndexHNSWSQ(dim, eight_bits, 32, inner)
            index.hnsw.efConstruction, index.hnsw.efSearch = 128, 4 * probes
            lists = 1
        else:
            index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, lists, eight_bits, inner, False)
            index.nprobe = probes
        sample = min(n, max(10000, TRAIN_PER_LIST * lists))
        index.train(candidates[np.unique(np.linspace(0, n - 1, sample).astype(np.int64))])
        if device.startswith("cuda") and method == "ivf" and getattr(faiss, "get_num_gpus", lambda: 0)():
            index = faiss.index_cpu_to_all_gpus(index)
        for start in range(0, n, ADD_BLOCK):
            index.add(np.ascontiguousarray(candidates[start : start + ADD_BLOCK]))
        self.index = index

    def top(self, q_BD: np.ndarray, excluded: PairSet | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Same as `ExactSearch.top`.

        Queries that have fewer than k candidates left after exclusion are searched again for more candidates.
        """
        excluded = excluded or PairSet()
        candidates, keys = np.full((len(q_BD), self.k), -1, np.int64), np.zeros((len(q_BD), self.k), np.int32)
        todo, width, n = np.arange(len(q_BD)), min(2 * self.k, MAX_PROPOSALS), len(self.candidates)
        while len(todo):
            _, proposed = self.index.search(q_BD[todo], min(width, n))
            proposed = np.where(excluded.contains(proposed, todo), -1, proposed)
            row, column = np.nonzero(proposed >= 0)
            candidate = proposed[row, column]
            scored = pair_keys(q_BD, self.candidates, todo[row], candidate)
            candidates[todo], keys[todo] = top_k_of_pairs(row, candidate, scored, len(todo), self.k)
            if width >= min(n, MAX_PROPOSALS):
                break
            todo, width = todo[candidates[todo, -1] < 0], min(4 * width, MAX_PROPOSALS)
        return candidates, keys
