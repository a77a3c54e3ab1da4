"""Candidates whose words are like the query's (BM25 through bm25s), for any direction whose rows carry text.

The words of an item are those of the row that names it: a direction between two modalities without words still finds rows
whose descriptions are alike.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.errors import DataError, MissingExtra
from mmtune.relevance.items import Items

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


class Lexical:
    """The `width` candidates most alike in words, best first, -1 where none shares a word."""

    def __init__(
        self,
        queries: Items,
        candidates: Items,
        data: "Data | WeightedConcat",
        row_of: Callable[[list[str]], np.ndarray],
        width: int,
    ):
        try:
            import bm25s
        except ImportError:
            raise MissingExtra('sources: lexical needs bm25s: pip install "mmtune[mining]"') from None
        self.bm25s, self.width = bm25s, min(width, len(candidates))
        self.modality = next((m for m in data.modalities if modalities.get(m).language), None)
        if self.modality is None:
            raise DataError(f"{data.spec}: sources: lexical needs text, and the data have no text; leave it out")
        self.data, self.rows = data, row_of(queries.ids)
        self.index = bm25s.BM25()
        corpus = [self._words(i) for i in row_of(candidates.ids)]
        tokens = bm25s.tokenize(corpus, stopwords=None, show_progress=False)
        if not tokens.vocab or not any(len(t) for t in tokens.ids):
            raise DataError(f"{data.spec}: sources: lexical found no words in {self.modality}; leave it out")
        self.index.index(tokens, show_progress=False)

    def _words(self, row: int) -> str:
        assert self.modality is not None
        if row < 0 or not self.data.present[self.modality][row]:
            return ""
        return str(modalities.get(self.modality).decode(self.data.read(int(row), self.modality)))

    def top(self, q: np.ndarray) -> np.ndarray:
        """int64 [B, width] for query items q."""
        said = [self._words(i) for i in self.rows[q]]
        words = self.bm25s.tokenize(said, stopwords=None, return_ids=False, show_progress=False)
        found, scores = self.index.retrieve(words, k=self.width, show_progress=False, backend_selection="numpy")
        # equal BM25 scores: the smaller item number first, whatever the library's selection did
        order = np.lexsort((found, -scores), axis=1)
        found, scores = np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)
        return np.where(scores > 0, found, -1).astype(np.int64)
