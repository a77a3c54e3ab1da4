"""A Haystack component over a collection: `pip install haystack-ai`."""

from mmtune.errors import MissingExtra
from mmtune.integrations.retrieved_documents import opened, retrieve

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError:
    raise MissingExtra("mmtune.integrations.haystack needs haystack-ai: pip install haystack-ai") from None


@component
class CollectionDocumentRetriever:
    """Retrieves the items of a collection for a text, as a component of a pipeline."""

    def __init__(self, collection: str, k: int = 10, where: str | None = None):
        """collection: directory of the collection; k: number of documents; where: metadata filter, as in `Collection.search`"""
        self.collection, self.k, self.where = str(collection), k, where
        self._opened = opened(collection)

    def to_dict(self) -> dict[str, object]:
        """Return the component's settings, as pipelines are stored."""
        found: dict[str, object] = default_to_dict(self, collection=self.collection, k=self.k, where=self.where)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> "CollectionDocumentRetriever":
        """Create the component from its settings."""
        created: CollectionDocumentRetriever = default_from_dict(cls, data)
        return created

    @component.output_types(documents=list[Document])
    def run(self, query: str, k: int | None = None) -> dict[str, list[Document]]:
        """Search. k: number of documents, instead of the component's own"""
        found = retrieve(self._opened, query, k=k or self.k, where=self.where)
        return {"documents": [Document(id=r.id, content=r.content, meta=r.metadata, score=r.score) for r in found]}
