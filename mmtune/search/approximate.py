"""Approximate neighbours past the size where exact ones are worth waiting for: faiss HNSW or IVF over 8-bit codes.

Proposals are scored again exactly, so scores and their order are right; what the index did not propose is missing. The audit
says how much: the recall measured against the exact scan on some of the queries.
"""

from typing import Any

import numpy as np

from mmtune.relevance.known_positives import Relevance
from mmtune.relevance.mining_items import Items
from mmtune.search.blocked import best, exact_pairs, faiss_module

ADD_AT_ONCE = 65536
TRAIN_PER_LIST = 64
LIMIT = 2048  # faiss on an accelerator returns no more


class ApproximateSearch:
    """The interface of `scan.ExactSearch`, from an index."""

    def __init__(self, candidates: Items, method: str, probes: int, device: str = "cpu", k: int = 64, block: int = 1024):
        self.name, self.candidates, self.k, self.block = method, candidates, k, block
        faiss, n, dim = faiss_module(), len(candidates), candidates.dim
        inner = faiss.METRIC_INNER_PRODUCT
        if method == "hnsw":
            index: Any = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, 32, inner)
            index.hnsw.efConstruction, index.hnsw.efSearch = 128, 4 * probes
        else:
            lists = int(max(1, min(4 * n**0.5, n / 39)))
            coarse, eight = faiss.IndexFlatIP(dim), faiss.ScalarQuantizer.QT_8bit
            index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, eight, inner, False)
            index.nprobe = probes
        wanted = min(n, max(10000, TRAIN_PER_LIST * getattr(index, "nlist", 1)))
        index.train(candidates.take(np.unique(np.linspace(0, n - 1, wanted).astype(np.int64))))
        if device.startswith("cuda") and method == "ivf" and getattr(faiss, "get_num_gpus", lambda: 0)():
            index = faiss.index_cpu_to_all_gpus(index)
        for start in range(0, n, ADD_AT_ONCE):
            index.add(candidates.take(np.arange(start, min(n, start + ADD_AT_ONCE))))
        self.index = index

    def top(self, queries: Items, q: np.ndarray, relevance: Relevance) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactSearch.top`, of what the index proposes; looks further while known positives take the places."""
        q_BD = queries.take(q)
        out = np.full((len(q), self.k), -1, np.int64), np.zeros((len(q), self.k), np.int32)
        todo, width, n = np.arange(len(q)), min(2 * self.k, LIMIT), len(self.candidates)
        while len(todo):
            _, found = self.index.search(q_BD[todo], min(width, n))
            found = np.where(relevance.is_positive(q[todo], found), -1, found)
            row, column = np.nonzero(found >= 0)
            item = found[row, column]
            keys = exact_pairs(q_BD, todo[row], self.candidates.vectors, self.candidates.head[item])
            items, scores = best(row, item, keys, len(todo), self.k)
            out[0][todo], out[1][todo] = items, scores
            if width >= min(n, LIMIT):
                break
            todo, width = todo[items[:, -1] < 0], min(4 * width, LIMIT)
        return out
