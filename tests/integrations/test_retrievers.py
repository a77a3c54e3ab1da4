"""Retrievers of LangChain, LlamaIndex and Haystack over a collection give what the collection's own search gives."""

import numpy as np
import pytest

import mmtune
from mmtune.errors import DataError
from mmtune.integrations.retrieved_documents import retrieve
from tests.support import corpora

QUERY = "a red square"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    root = tmp_path_factory.mktemp("products")
    found = mmtune.Collection(root / "products", create=True)
    version = found.build("tiny:clip", corpora.packed(root, 24, 0, ("image", "text"))).version
    found.promote(version)
    return found


@pytest.fixture(scope="module")
def expected(collection):
    return [(r.id, r.score) for r in collection.search(text=QUERY, k=5).results]


def test_results_have_caption_metadata_and_score(collection, expected):
    found = retrieve(collection, QUERY, k=5)
    assert [(r.id, r.score) for r in found] == expected and all(r.content for r in found)
    assert found[0].metadata["id"] == found[0].id and "shade" in found[0].metadata and found[0].metadata["group"]
    dark = retrieve(collection, QUERY, k=3, where="shade = 'dark'")
    assert len(dark) == 3 and {r.metadata["shade"] for r in dark} == {"dark"}
    with pytest.raises(DataError, match="the query is empty"):
        retrieve(collection, "  ", k=3)


def test_langchain(collection, expected):
    pytest.importorskip("langchain_core")
    from mmtune.integrations.langchain import CollectionRetriever, ModelEmbeddings

    documents = CollectionRetriever(collection=str(collection.path), k=5).invoke(QUERY)
    assert [(d.id, d.metadata["score"]) for d in documents] == expected and documents[0].page_content
    embeddings = ModelEmbeddings("tiny:clip")
    np.testing.assert_allclose(embeddings.embed_query(QUERY), embeddings.model.encode(text=QUERY), atol=1e-6)
    assert np.shape(embeddings.embed_documents(["a", "b"])) == (2, 64)


def test_llama_index(collection, expected):
    pytest.importorskip("llama_index.core")
    from mmtune.integrations.llama_index import CollectionNodeRetriever

    nodes = CollectionNodeRetriever(collection, k=5).retrieve(QUERY)
    assert [(n.node.node_id, n.score) for n in nodes] == expected and nodes[0].node.get_content()


def test_haystack(collection, expected):
    pytest.importorskip("haystack")
    from haystack import Pipeline

    from mmtune.integrations.haystack import CollectionDocumentRetriever

    pipeline = Pipeline()
    pipeline.add_component("search", CollectionDocumentRetriever(str(collection.path), k=5))
    again = Pipeline.from_dict(pipeline.to_dict(), allowed_modules=["mmtune.integrations.haystack"])
    documents = again.run({"search": {"query": QUERY}})["search"]["documents"]
    assert [(d.id, d.score) for d in documents] == expected and documents[0].content
