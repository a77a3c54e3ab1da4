"""`mmtune.compare` and the compare verb on real shards and real (tiny) models; the one assembler behind all comparisons."""

import json
from dataclasses import replace

import numpy as np
import pytest

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.compare_models import ComparedModel, assemble_comparison, compare
from mmtune.comparison.compare_vectors import compare_vectors
from mmtune.comparison.gate import Gate
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError
from mmtune.model import artifact
from mmtune.reporting.measured import measure
from mmtune.reporting.subject import report_subject
from tests.support.evaluate_helpers import coloured_rows, shards


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("verbs")
    shards(top / "val", coloured_rows(1))
    shards(top / "retention", coloured_rows(2, 24, 100))
    return top


def test_compare_verb(place, tmp_path, capsys):
    frozen = tmp_path / "confusable.json"
    (tmp_path / "gate.yaml").write_text(
        "gate: {metric: map, direction: 'text->image', min_gain: 0.05, guards: {general: -0.01}}\n"
    )
    argv = ["tiny:clip", "tiny:clip@3", str(place / "val"), "--retention", str(place / "retention"), "--slice", "kind"]
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
    artifact.save(model, tmp_path / "trained", trained_on={k: data.labels[k][:5] for k in ("id", "image", "text")})
    with pytest.raises(DataError, match="the candidate was trained on 5 of these 36 rows"):
        compare("tiny:clip", str(tmp_path / "trained"), str(place / "val"))
    other = open_data(str(place / "retention"))
    artifact.save(model, tmp_path / "new", trained_on={k: other.labels[k] for k in ("id", "image", "text")})
    assert compare("tiny:clip", str(tmp_path / "new"), str(place / "val")).directions["mean"].difference == 0


def test_compare_report_and_promotion_assemble_the_same_comparison(place):
    """The report's comparison, and that of an index version without answers in its index, equal `mmtune.compare`."""
    data, retention = str(place / "val"), str(place / "retention")
    gate = {"metric": "map", "direction": "text->image"}
    comparison = compare("tiny:clip", "tiny:clip@3", data, gate=gate, slices=["kind"], retention=retention)
    measured = measure(report_subject(None, "tiny:clip", "tiny:clip@3", data, gate), ["kind"], retention)
    assert measured.comparison.to_dict() == comparison.to_dict()
    rows = open_data(data)

    def nothing_relevant(modalities):
        vectors = embed_data(mmtune.load("tiny:clip"), rows, modalities)
        labels = {"id": np.arange(-36, 0), "group": np.zeros(36, np.int64)}
        return {m: replace(e, labels={**e.labels, **labels}) for m, e in vectors.items()}

    sides = [ComparedModel(mmtune.load(m), m, None, ("image",), nothing_relevant) for m in ("tiny:clip", "tiny:clip@3")]
    assembled = assemble_comparison(*sides, rows, gate=gate, slices=["kind"], retention=open_data(retention), confusable=False)
    expected = compare("tiny:clip", "tiny:clip@3", data, gate=gate, slices=["kind"], retention=retention, confusable=False)
    assert not assembled.against_index and assembled.comparison.to_dict() == expected.to_dict()


def test_an_index_gives_the_candidates(place):
    """Queries of the data among an index's own vectors: the numbers of the same vectors compared by hand."""
    rows, models = open_data(str(place / "val")), [mmtune.load(m) for m in ("tiny:clip", "tiny:clip@3")]
    stored = [embed_data(m, rows, ["image"]) for m in models]
    sides = [ComparedModel(m, "a version", None, ("image",), lambda names, s=s: s) for m, s in zip(models, stored, strict=True)]
    assembled = assemble_comparison(*sides, rows, confusable=False)
    vectors = [{**embed_data(m, rows, ["text"], role="query"), **s} for m, s in zip(models, stored, strict=True)]
    expected = compare_vectors(*vectors, pairs=[("text", "image")])
    assert assembled.against_index and list(assembled.comparison.directions) == ["text->image"]
    assert assembled.comparison.to_dict() == expected.to_dict()


def test_guards_of_earlier_versions_are_read():
    assert dict(Gate.read({"guards": {"general": -0.01}}).guards) == {"retention": -0.01}
