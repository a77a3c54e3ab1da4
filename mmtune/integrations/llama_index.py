"""A LlamaIndex retriever over a collection: `pip install llama-index-core`."""

from typing import TYPE_CHECKING

from mmtune.errors import MissingExtra
from mmtune.integrations.retrieved_documents import opened, retrieve

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError:
    raise MissingExtra("mmtune.integrations.llama_index needs llama-index-core: pip install llama-index-core") from None

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.index.collection import Collection


class CollectionNodeRetriever(BaseRetriever):
    """Retrieves the items of a collection for a text: `CollectionNodeRetriever("products").retrieve("red shoe")`."""

    def __init__(self, collection: "Collection | str | Path", *, k: int = 10, where: str | None = None):
        """collection: a `Collection` or its directory; k: number of nodes; where: metadata filter, as in `Collection.search`"""
        super().__init__()
        self._collection, self._k, self._where = opened(collection), k, where

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = retrieve(self._collection, query_bundle.query_str, k=self._k, where=self._where)
        nodes = [TextNode(id_=r.id, text=r.content, metadata=r.metadata) for r in found]
        return [NodeWithScore(node=node, score=r.score) for node, r in zip(nodes, found, strict=True)]
