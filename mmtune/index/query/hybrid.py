"""Hybrid search: fuse vector search with BM25 over captions and metadata strings, by reciprocal rank fusion."""

from collections.abc import Sequence

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.index.collection_results import HybridResult, SearchResult
from mmtune.index.item_catalog import Catalog, split_payload
from mmtune.index.query.bm25 import Bm25Index, reciprocal_rank_fusion
from mmtune.index.query.filters import Filter

DEPTH = 100
"""Number of results of each of the two rankings that are fused."""


class ItemBm25:
    """An in-memory BM25 index of a catalog's current items: their captions (text modalities) and their metadata strings."""

    def __init__(self, catalog: Catalog):
        language = [m for m in catalog.counts() if modalities.get(m).language]
        self.payloads: dict[str, JsonObject] = {}
        self.modalities: dict[str, tuple[str, ...]] = {}
        documents: list[str] = []
        for items in catalog.changed(0):
            for item in items:
                values = [catalog.read(item, m).decode("utf-8", "replace") for m in language if m in item.contents]
                documents.append(" ".join([*values, *(v for v in item.meta.values() if isinstance(v, str))]))
                self.payloads[item.id] = item.payload
                self.modalities[item.id] = tuple(item.contents)
        self._index = Bm25Index(list(self.payloads), documents)

    def search(self, query: str, where: Filter | None, target: Sequence[str] | None = None) -> list[str]:
        """Return the ids of the DEPTH best items that match the filter and have a `target` modality, best first."""
        admitted = None if where is None else [i for i, payload in self.payloads.items() if where.matches(payload)]
        if target is not None:
            having = self.payloads if admitted is None else admitted
            admitted = [i for i in having if set(target) & set(self.modalities[i])]
        return [id for id, _ in self._index.search(query, DEPTH, admitted)]


def fuse(
    bm25: ItemBm25,
    query: str,
    results: Sequence[SearchResult],
    where: Filter | None,
    target: Sequence[str] | None = None,
) -> list[SearchResult]:
    """Fuse the results of vector search with those of BM25, by fused score descending.

    `similarity` of a fused result is its cosine similarity, or None when only BM25 found the item.
    """
    by_id = {r.id: r for r in results}
    out: list[SearchResult] = []
    for id, score in reciprocal_rank_fusion([list(by_id), bm25.search(query, where, target)]):
        near = by_id.get(id)
        if near is not None:
            out.append(HybridResult(id, score, near.modality, near.group, near.meta, near.score))
        else:
            group, meta = split_payload(bm25.payloads[id])
            out.append(HybridResult(id, score, None, group, meta, None))
    return out
