"""A LangChain retriever over a collection, and LangChain embeddings of a model: `pip install langchain-core`."""

from typing import Any

from mmtune.errors import MissingExtra
from mmtune.integrations.retrieved_documents import opened, retrieve

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
except ImportError:
    raise MissingExtra("mmtune.integrations.langchain needs langchain-core: pip install langchain-core") from None


class CollectionRetriever(BaseRetriever):
    """Retrieves the items of a collection for a text: `CollectionRetriever(collection="products").invoke("red shoe")`.

    collection: a `Collection` or its directory
    k: number of documents
    where: metadata filter, as in `Collection.search`
    """

    collection: Any
    k: int = 10
    where: str | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: object = None) -> list[Document]:
        found = retrieve(opened(self.collection), query, k=self.k, where=self.where)
        return [Document(page_content=r.content, metadata=r.metadata, id=r.id) for r in found]


class ModelEmbeddings(Embeddings):
    """Embeddings of texts by a model, for LangChain's vector stores. Queries get the model's query prompt."""

    def __init__(self, model: Any):
        """model: a `Model`, or what `mmtune.load` accepts"""
        from mmtune.model.artifact import load
        from mmtune.model.dual_encoder import Model

        self.model = model if isinstance(model, Model) else load(model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents."""
        return self._embed(texts, None)

    def embed_query(self, text: str) -> list[float]:
        """Embed one query."""
        return self._embed([text], "query")[0]

    def _embed(self, texts: list[str], role: str | None) -> list[list[float]]:
        from mmtune.exporting.what_it_holds import text_modality
        from mmtune.model.encode import encode_values

        vectors: list[list[float]] = encode_values(self.model, text_modality(self.model) or "", texts, role=role).tolist()
        return vectors
