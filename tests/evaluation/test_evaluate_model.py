"""`mmtune.evaluate` on real shards and real (tiny) models."""

import pytest

import mmtune
from mmtune.data.shards.dataset import open_data
from mmtune.evaluation.directions import evaluate_vectors
from tests.support.evaluate_helpers import coloured_rows, shards


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("verbs")
    shards(top / "val", coloured_rows(1))
    shards(top / "retention", coloured_rows(2, 24, 100))
    return top


def test_evaluate_can_be_called_whether_imported_or_not(place):
    result = mmtune.evaluate("tiny:clip", str(place / "val"), slices=["kind", "size:image", "size:text"])
    model, data = mmtune.load("tiny:clip"), open_data(str(place / "val"))
    from mmtune.embedding.embed_rows import embed_data

    vectors = embed_data(model, data)
    assert {k: v for k, v in result.to_dict().items() if k != "slices"} == evaluate_vectors(vectors).to_dict()
    assert result.fingerprint == model.fingerprint
    parts = result.slices["image->text"]
    assert {"kind=even", "kind=odd"} < set(parts) and parts["kind=even"].queries == 18
    assert sum(s.queries for n, s in parts.items() if n.startswith("image pixels=")) == 36
    values = [s.metrics["ndcg@10"] for s in parts.values()]
    assert values == sorted(values)
    assert "kind=odd" in str(result) and "image-&gt;text" in result._repr_html_()
    assert "image->text | kind=odd" in result.to_pandas().index
    assert mmtune.evaluation.evaluate is mmtune.evaluation.evaluate_model.evaluate
