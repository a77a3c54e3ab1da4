"""Hybrid search: BM25 over items' captions and metadata strings, fused with vector search by reciprocal rank."""

from collections.abc import Sequence

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.index.collection_results import HybridResult, SearchResult
from mmtune.index.item_catalog import Catalog, split_payload
from mmtune.index.query.bm25 import Bm25Index, reciprocal_rank_fusion
from mmtune.index.query.filters import Filter

DEPTH = 100
"""Results of each ranking that are fused."""


class ItemBm25:
    """BM25 over the items of a catalog at one moment, in memory: their values of language and the strings of their metadata."""

    def __init__(self, catalog: Catalog):
        language = [m for m in catalog.counts() if modalities.get(m).language]
        self.payloads: dict[str, JsonObject] = {}
        documents: list[str] = []
        for items in catalog.changed(0):
            for item in items:
                values = [catalog.read(item, m).decode("utf-8", "replace") for m in language if m in item.contents]
                documents.append(" ".join([*values, *(v for v in item.meta.values() if isinstance(v, str))]))
                self.payloads[item.id] = item.payload
        self._index = Bm25Index(list(self.payloads), documents)

    def search(self, query: str, where: Filter | None) -> list[str]:
        """Ids of the DEPTH best items that `where` admits, best first."""
        admitted = None if where is None else [i for i, payload in self.payloads.items() if where.matches(payload)]
        return [id for id, _ in self._index.search(query, DEPTH, admitted)]


def fuse(bm25: ItemBm25, query: str, results: Sequence[SearchResult], where: Filter | None) -> list[SearchResult]:
    """Vector results and BM25's, by fused score; `similarity` keeps the cosine of those that vector search returned."""
    by_id = {r.id: r for r in results}
    out: list[SearchResult] = []
    for id, score in reciprocal_rank_fusion([list(by_id), bm25.search(query, where)]):
        near = by_id.get(id)
        if near is not None:
            out.append(HybridResult(id, score, near.modality, near.group, near.meta, near.score))
        else:
            group, meta = split_payload(bm25.payloads[id])
            out.append(HybridResult(id, score, None, group, meta, None))
    return out
