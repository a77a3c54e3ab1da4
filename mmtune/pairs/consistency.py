"""Round-trip consistency of generated texts: a text is kept if a model ranks its item among the first (Promptagator, arXiv 2209.11755)."""

from collections.abc import Sequence

import numpy as np

from mmtune import modalities
from mmtune.model.dual_encoder import Model
from mmtune.model.encode import encode_values

BLOCK = 512


def item_ranks(queries: np.ndarray, items: np.ndarray, of_query: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rank of each query's item, 1 for the best. Ties count against it.

    queries: float32 [Q, D]; items: float32 [N, D], both L2-normalised
    of_query: int64 [Q], the item of each query
    labels: int64 [N], the label of each item; items of one label are the same thing, and the best of them counts
    """
    ranks = np.zeros(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        scores = queries[rows] @ items.T
        own = labels[of_query[rows]][:, None] == labels[None, :]
        best = np.where(own, scores, -np.inf).max(1)
        ranks[rows] = 1 + ((scores >= best[:, None]) & ~own).sum(1)
    return ranks


def consistency_ranks(
    model: Model, texts: Sequence[str], of_text: Sequence[int], values: Sequence[object], labels: Sequence[str], modality: str
) -> np.ndarray:
    """Embed generated texts and all items, and rank the item of each text.

    of_text: the item of each text
    values, labels: value and label (group, or id) of each item
    modality: that of the items
    """
    language = next(n for n in modalities.names() if modalities.get(n).language)
    queries = encode_values(model, language, list(texts), role="query")
    items = encode_values(model, modality, list(values))
    _, numbers = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
    return item_ranks(queries, items, np.array(of_text, np.int64), numbers)
