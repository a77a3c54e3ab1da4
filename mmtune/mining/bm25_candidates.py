"""Source `lexical`: candidates whose text is similar to the query's text (BM25, computed by the package bm25s).

It works for any direction if the rows have text. An item's text is that of the row that gives the item its id. So even a
direction between two other modalities, e.g. image and audio, gets candidates with similar descriptions.
"""

import numpy as np

from mmtune import modalities
from mmtune.errors import DataError, MissingExtra
from mmtune.mining.context import MiningContext, row_finder

WINDOWS = 4
"""Candidates proposed per query, in multiples of `mining.window`: known positives have similar text and are left out later."""


class BM25Candidates:
    """Proposes the candidates with the highest BM25 scores, best first; -1 fills up if too few share a word with the query."""

    def __init__(self, context: MiningContext):
        try:
            import bm25s
        except ImportError:
            raise MissingExtra('sources: lexical needs bm25s: pip install "mmtune[mining]"') from None
        self.bm25s = bm25s
        self.data = context.require_data(f"sources: {', '.join(context.options.sources)}")
        self.width = min(WINDOWS * context.options.window, len(context.candidates))
        modality = next((m for m in self.data.modalities if modalities.get(m).language), None)
        if modality is None:
            raise DataError(
                f"{self.data.spec}: the source lexical needs text, which the data do not have; remove it from mining.sources"
            )
        self.modality = modality
        rows_of = row_finder(self.data)
        self.rows = rows_of(context.queries.ids)
        corpus = [self._read(row) for row in rows_of(context.candidates.ids)]
        tokens = bm25s.tokenize(corpus, stopwords=None, show_progress=False)
        if not tokens.vocab or not any(len(t) for t in tokens.ids):
            raise DataError(f"{self.data.spec}: the source lexical found no words in {modality}; remove it from mining.sources")
        self.index = bm25s.BM25()
        self.index.index(tokens, show_progress=False)

    def _read(self, row: int) -> str:
        if row < 0 or not self.data.present[self.modality][row]:
            return ""
        return str(modalities.get(self.modality).decode(self.data.read(int(row), self.modality)))

    def propose(self, queries: np.ndarray) -> np.ndarray:
        """Return candidates [B, width] of query items [B]."""
        values = [self._read(row) for row in self.rows[queries]]
        tokens = self.bm25s.tokenize(values, stopwords=None, return_ids=False, show_progress=False)
        candidates, scores = self.index.retrieve(tokens, k=self.width, show_progress=False, backend_selection="numpy")
        # sort again: the library returns candidates with equal scores in an arbitrary order, we want the smaller one first
        order = np.lexsort((candidates, -scores), axis=1)
        candidates, scores = np.take_along_axis(candidates, order, 1), np.take_along_axis(scores, order, 1)
        return np.where(scores > 0, candidates, -1).astype(np.int64)
