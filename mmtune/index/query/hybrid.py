"""Words beside vectors: BM25 over what items say (language values, and strings of their metadata), fused by reciprocal rank."""

from typing import Any

from mmtune import modalities
from mmtune.index.catalog import Catalog
from mmtune.index.query.bm25 import Words, reciprocal_rank_fusion
from mmtune.index.query.filters import Filter

DEPTH = 100


class ItemWords:
    """The words of a corpus at one moment, in memory."""

    def __init__(self, catalog: Catalog):
        language = [m for m in catalog.counts() if modalities.get(m).language]
        self.columns: dict[str, dict[str, Any]] = {}
        said: list[str] = []
        for items in catalog.changed(0):
            for item in items:
                own = [catalog.read(item, m).decode("utf-8", "replace") for m in language if m in item.contents]
                said.append(" ".join([*own, *(v for v in item.meta.values() if isinstance(v, str))]))
                self.columns[item.id] = item.columns
        self.words = Words(list(self.columns), said)

    def search(self, words: str, where: Filter | None) -> list[str]:
        """Ids, best first."""
        among = None if where is None else [i for i, c in self.columns.items() if where.matches(c)]
        return [name for name, _ in self.words.search(words, DEPTH, among)]


def fuse(held: ItemWords, words: str, results: list[dict[str, Any]], where: Filter | None) -> list[dict[str, Any]]:
    """Results by fused score; "similarity" keeps the cosine of those that the vectors found."""
    known = {r["id"]: r for r in results}
    out = []
    for name, score in reciprocal_rank_fusion([list(known), held.search(words, where)]):
        line = known.get(name)
        if line is None:
            meta = held.columns[name]
            own = {k: v for k, v in meta.items() if k != "group"}
            line = {"id": name, "score": None, "found": None, "group": meta.get("group"), "meta": own}
        out.append({**line, "score": score, "similarity": line["score"]})
    return out
