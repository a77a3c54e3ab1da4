"""`mmtune.evaluate`, `mmtune.compare` and the compare verb on real shards and real (tiny) models."""

import json

import numpy as np
import pytest

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.compare_models import compare
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.model import artifact
from tests.support.evaluate_helpers import picture, shards


def rows(seed, count=36, start=0):
    rng = np.random.default_rng(seed)
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 40), (40, 180, 180), (180, 40, 180)]
    return [
        {
            "id": f"r{start + i}",
            "group": f"g{i % 6}",
            "png": picture(rng, colours[i % 6], (64 + 8 * (i % 5), 48)),
            "txt": f"a thing of colour number {i % 6}, item {start + i}".encode(),
            "meta": {"kind": "even" if i % 2 == 0 else "odd"},
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("verbs")
    shards(top / "val", rows(1))
    shards(top / "general", rows(2, 24, 100))
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


def test_compare_verb(place, tmp_path, capsys):
    frozen = tmp_path / "confusable.json"
    (tmp_path / "gate.yaml").write_text(
        "gate: {metric: map, direction: 'text->image', min_gain: 0.05, guards: {general: -0.01}}\n"
    )
    argv = ["tiny:clip", "tiny:clip@3", str(place / "val"), "--retention", str(place / "general"), "--slice", "kind"]
    argv += ["--confusable", str(frozen), "--gate", str(tmp_path / "gate.yaml"), "--guard", "confusable=-0.5", "--json"]
    status = dispatch("compare", argv)
    document = json.loads(capsys.readouterr().out)
    assert status == (0 if document["verdict"] == "pass" else 1) and document["verdict"] in ("pass", "fail", "inconclusive")
    assert document["gate"]["guards"] == {"retention": -0.01, "confusable": -0.5} and document["gate"]["min_gain"] == 0.05
    assert set(document["slices"]) == {"retention", "confusable", "confusable pairs", "kind=even", "kind=odd"}
    assert set(document["directions"]) == {"image->text", "text->image", "mean"}
    assert json.loads(frozen.read_text())["fingerprint"] == document["fingerprints"]["base"]
    before = frozen.read_bytes()
    dispatch("compare", [*argv[:1], "tiny:clip@4", *argv[2:]])
    assert frozen.read_bytes() == before


def test_trained_on_rows_are_refused(place, tmp_path):
    model = mmtune.load("tiny:clip")
    data = open_data(str(place / "val"))
    artifact.save(model, tmp_path / "seen", trained_on={k: data.labels[k][:5] for k in ("id", "image", "text")})
    with pytest.raises(DataError, match="the candidate was trained on 5 of these 36 rows"):
        compare("tiny:clip", str(tmp_path / "seen"), str(place / "val"))
    other = open_data(str(place / "general"))
    artifact.save(model, tmp_path / "new", trained_on={k: other.labels[k] for k in ("id", "image", "text")})
    assert compare("tiny:clip", str(tmp_path / "new"), str(place / "val")).directions["mean"].difference == 0
