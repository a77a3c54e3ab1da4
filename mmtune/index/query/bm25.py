"""Search by words beside search by vectors: BM25 (through bm25s) over the words of items, and the fusion of ranked lists."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmtune.errors import MissingExtra
from mmtune.search.tie_order import tie_order


class Words:
    """BM25 over items' words, in memory. Items without words are never found."""

    def __init__(self, ids: Sequence[str], words: Sequence[str]):
        try:
            import bm25s
        except ImportError:
            raise MissingExtra('hybrid search needs bm25s: pip install "mmtune[mining]"') from None
        self._bm25s = bm25s
        order = tie_order(ids)
        # descending id order: a stable sort by score then breaks ties as everywhere
        self.ids = [ids[i] for i in order]
        self._at = {id: n for n, id in enumerate(self.ids)}
        tokens = bm25s.tokenize([words[i] for i in order], stopwords=None, show_progress=False)
        self._index = None
        if any(len(t) for t in tokens.ids):
            self._index = bm25s.BM25()
            self._index.index(tokens, show_progress=False)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, words: str, k: int, among: Iterable[str] | None = None) -> list[tuple[str, float]]:
        """The k items most alike in words, (id, score > 0), score descending, ties by id descending.

        `among`: ids that may be found (what a filter admits); default all.
        """
        asked = self._bm25s.tokenize([words], stopwords=None, return_ids=False, show_progress=False)[0]
        if self._index is None or not asked or k <= 0:
            return []
        known = [t for t in asked if t in self._index.vocab_dict]
        if not known:
            return []
        scores = np.asarray(self._index.get_scores(known))
        if among is not None:
            mask = np.zeros(len(self.ids), bool)
            mask[[self._at[i] for i in among if i in self._at]] = True
            scores = np.where(mask, scores, 0)
        found = np.flatnonzero(scores > 0)
        if len(found) > k:
            least = np.partition(scores[found], len(found) - k)[len(found) - k]
            found = found[scores[found] >= least]
        found = found[np.argsort(-scores[found], kind="stable")][:k]
        return [(self.ids[i], float(scores[i])) for i in found]


def reciprocal_rank_fusion(
    lists: Sequence[Sequence[str]], k: int = 60, weights: Sequence[float] | None = None
) -> list[tuple[str, float]]:
    """One ranking of several: score = sum of weight / (k + rank), rank from 1 (Cormack, Clarke, Büttcher, SIGIR 2009).

    Every item of any list comes once, score descending, ties by id descending.
    """
    fused: dict[str, float] = {}
    for ranked, weight in zip(lists, weights or [1.0] * len(lists), strict=True):
        for rank, id in enumerate(ranked, 1):
            fused[id] = fused.get(id, 0.0) + weight / (k + rank)
    return _descending(fused)


def _descending(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
