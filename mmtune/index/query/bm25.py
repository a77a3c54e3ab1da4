"""BM25 keyword search over items (with bm25s), and reciprocal rank fusion."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmtune.errors import MissingExtra
from mmtune.search.tie_order import tie_order


class Bm25Index:
    """An in-memory BM25 index with one document per item. Items whose document has no terms are never returned."""

    def __init__(self, ids: Sequence[str], documents: Sequence[str]):
        try:
            import bm25s
        except ImportError:
            raise MissingExtra('hybrid search needs bm25s: pip install "mmtune[mining]"') from None
        self._bm25s = bm25s
        order = tie_order(ids)
        # Items are stored in descending order of id, so that a stable sort by score breaks ties by descending id.
        self.ids = [ids[i] for i in order]
        self._position = {id: n for n, id in enumerate(self.ids)}
        tokens = bm25s.tokenize([documents[i] for i in order], stopwords=None, show_progress=False)
        self._index = None
        if any(len(t) for t in tokens.ids):
            self._index = bm25s.BM25()
            self._index.index(tokens, show_progress=False)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, query: str, k: int, among: Iterable[str] | None = None) -> list[tuple[str, float]]:
        """Return the k best items as (id, score > 0), by score descending, ties by id descending.

        among: ids that may be returned; default: all.
        """
        terms = self._bm25s.tokenize([query], stopwords=None, return_ids=False, show_progress=False)[0]
        if self._index is None or not terms or k <= 0:
            return []
        known = [t for t in terms if t in self._index.vocab_dict]
        if not known:
            return []
        scores = np.asarray(self._index.get_scores(known))
        if among is not None:
            mask = np.zeros(len(self.ids), bool)
            mask[[self._position[i] for i in among if i in self._position]] = True
            scores = np.where(mask, scores, 0)
        matched = np.flatnonzero(scores > 0)
        if len(matched) > k:
            kth_score = np.partition(scores[matched], len(matched) - k)[len(matched) - k]
            matched = matched[scores[matched] >= kth_score]
        best = matched[np.argsort(-scores[matched], kind="stable")][:k]
        return [(self.ids[i], float(scores[i])) for i in best]


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[str]], k: int = 60, weights: Sequence[float] | None = None
) -> list[tuple[str, float]]:
    """Fuse several rankings: the score of an item is the sum of weight / (k + rank), with ranks from 1.

    Returns (id, score) for every item of any ranking, by score descending, ties by id descending. Source: Cormack, Clarke,
    Büttcher, SIGIR 2009.
    """
    fused: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, id in enumerate(ranking, 1):
            fused[id] = fused.get(id, 0.0) + weight / (k + rank)
    return _descending(fused)


def _descending(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
