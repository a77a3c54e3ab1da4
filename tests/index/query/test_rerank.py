"""Re-ranking of search results: values against a naive loop, and scorers of every kind."""

import json

import numpy as np
import pytest

import mmtune
from mmtune import modalities
from mmtune.cli import main
from mmtune.errors import DataError, MmtuneError
from mmtune.index.collection_results import RerankedResult
from tests.support import corpora


class Brightness:
    """Prefers bright images, whatever the query is."""

    def score(self, pairs):
        return [float(np.asarray(image).mean()) for _, image in pairs]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    root = tmp_path_factory.mktemp("rerank")
    made = mmtune.Collection(root / "collection", create=True)
    made.build("tiny:clip", corpora.packed(root, 24, 0, ("image", "text")), modalities=["image"], quiet=True)
    made.promote("v1")
    yield made
    made.close()


@pytest.mark.parametrize("query", [{"text": "a red square"}, {"item": "0-003"}])
def test_results_equal_a_naive_loop_and_contain_nothing_new(collection, query):
    first = collection.search(k=9, **query)
    found = collection.search(k=4, rerank=Brightness(), rerank_depth=9, **query)
    image = modalities.get("image")
    bright = {r.id: float(np.asarray(image.decode(collection.value(r.id, "image"))).mean()) for r in first.results}
    naive = sorted(first.ids, key=lambda id: -bright[id])
    assert found.ids == naive[:4]
    assert [r.score for r in found.results] == [bright[id] for id in naive[:4]]
    before = {r.id: r.score for r in first.results}
    assert all(isinstance(r, RerankedResult) and r.first_stage_score == before[r.id] for r in found.results)


def test_results_beyond_the_depth_keep_their_order(collection):
    first = collection.search(text="a blue square", k=10)
    found = collection.search(text="a blue square", k=10, rerank=Brightness(), rerank_depth=3)
    assert set(found.ids[:3]) == set(first.ids[:3]) and found.ids[3:] == first.ids[3:]


def test_groups_and_hybrid_searches_are_reranked(collection):
    grouped = collection.search(text="a blue square", k=3, group_by="group", rerank=Brightness(), rerank_depth=24)
    assert len({r.group for r in grouped.results}) == 3 and grouped.results[0].group == "white"
    hybrid = collection.search(text="a blue square", k=3, hybrid=True, rerank=Brightness(), rerank_depth=24)
    assert {r.group for r in hybrid.results} == {"white"}


def test_a_model_by_name_reranks_on_the_command_line(collection, capsys):
    command = ["index", "search", str(collection.path), "--text", "a red square", "-k", "5", "--json"]
    assert main([*command, "--rerank", "tiny:clip@5", "--rerank-depth", "8"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    other = mmtune.load("tiny:clip@5")
    for r in results:
        vector = other.encode(image=[collection.value(r["id"], "image")])[0]
        assert r["score"] == pytest.approx(float(vector @ other.encode(text="a red square")), abs=1e-5)
    assert main([*command, "--rerank", "no/such/scorer"]) == 2
    assert "rerank no/such/scorer" in capsys.readouterr().err


def test_wrong_scorers_are_refused(collection):
    class Half:
        def score(self, pairs):
            return [1.0]

    with pytest.raises(DataError, match="one finite score"):
        collection.search(text="red", rerank=Half())
    with pytest.raises(DataError, match="depth 0"):
        collection.search(text="red", rerank=Brightness(), rerank_depth=0)
    with pytest.raises(MmtuneError, match="rerank"):
        collection.search(text="red", rerank="nowhere:Scorer")
