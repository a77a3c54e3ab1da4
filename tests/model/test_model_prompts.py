"""Words around words as part of a model: in its artifact, its fingerprint, training, embedding, evaluation and mining."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import mmtune
from mmtune.cli import main
from mmtune.embedding.embed_rows import embed_classes, embed_data
from mmtune.errors import RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.model.artifact import save
from mmtune.model.prompts import with_training_prompts
from mmtune.recipe.prompts_block import parse_prompts
from tests.support import corpora

BOTH = {"text": {"default": "a thing: {}", "query": "find: {}", "zero_shot": ["a photo of {}", "{}, close"]}}
TEXTS = ["a red square", "a blue square"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(scope="module")
def data(root):
    return corpora.packed(root, 24, 0, ("image", "text"))


@pytest.fixture()
def model():
    found = mmtune.load("tiny:clip")
    found.set_prompts(parse_prompts(BOTH))
    return found


def said(template):
    return mmtune.load("tiny:clip").encode(text=[template.format(t) for t in TEXTS])


def recipe(root, data, name, val=None, **keys):
    return {
        "model": "tiny:clip",
        "data": {"train": data, "val": val, "allow_trained": True},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": str(root / name)},
        **keys,
    }


def test_roles_of_encode(model):
    np.testing.assert_allclose(model.encode(text=TEXTS), said("a thing: {}"), atol=1e-6)
    np.testing.assert_allclose(model.encode(text=TEXTS, role="query"), said("find: {}"), atol=1e-6)
    mean = said("a photo of {}") + said("{}, close")
    np.testing.assert_allclose(
        model.encode(text=TEXTS, role="zero_shot"), mean / np.linalg.norm(mean, axis=1)[:, None], atol=1e-6
    )
    pixels = np.zeros((8, 8, 3), np.uint8)
    np.testing.assert_array_equal(model.encode(image=pixels, role="query"), model.encode(image=pixels))
    with pytest.raises(RecipeError, match="role 'qeury': this model has no such prompt for text; it has default, query, zero_"):
        model.encode(text=TEXTS, role="qeury")
    plain = mmtune.load("tiny:clip")
    np.testing.assert_array_equal(plain.encode(text=TEXTS, role="query"), plain.encode(text=TEXTS))  # anything may ask


def test_prompts_travel_with_the_artifact_and_name_the_space(model, root):
    plain = mmtune.load("tiny:clip")
    assert model.fingerprint != plain.fingerprint and plain.layout().settings == {}
    save(model, root / "kept")
    again = mmtune.load(root / "kept")
    assert again.prompts == model.prompts and again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.encode(text=TEXTS, role="query"), model.encode(text=TEXTS, role="query"))
    card = (root / "kept" / "README.md").read_text()
    assert "- prompt for text, role query: `find: {}`" in card and 'model.encode(text=[...], role="query")' in card
    again.set_prompts({})
    assert again.fingerprint == plain.fingerprint
    short = model.truncated(16)
    np.testing.assert_allclose(short.encode(text=TEXTS, role="query") @ said("find: {}")[:, :16].T > 0.1, True)


def test_the_query_side_of_an_evaluation_asks_with_its_own_words(model, data):
    rows = mmtune.open_data(data)
    found = embed_data(model, rows)
    assert found["image"].queries is None and found["image"].query_vectors is found["image"].vectors
    alone = {r: embed_data(model, rows, ["text"], role=r)["text"] for r in ("default", "query")}
    np.testing.assert_array_equal(found["text"].vectors, alone["default"].vectors)
    np.testing.assert_array_equal(found["text"].queries, alone["query"].vectors)
    assert alone["query"].queries is None
    result = evaluate_vectors(found).to_dict()["directions"]
    holds = evaluate_vectors({"image": found["image"], "text": alone["default"]}).to_dict()["directions"]
    assert result["image->text"] == holds["image->text"]
    other = alone["query"].vectors[::-1].copy()  # whatever asks, and only what asks, decides this direction
    turned = evaluate_vectors({**found, "text": replace(found["text"], queries=other)}).to_dict()["directions"]
    asks = evaluate_vectors({**found, "text": replace(found["text"], queries=None, vectors=other)}).to_dict()["directions"]
    assert turned["text->image"] == asks["text->image"] != result["text->image"]
    assert turned["image->text"] == result["image->text"] != asks["image->text"]
    within = evaluate_vectors(found, pairs=[("text", "text")]).directions
    assert "text->text" not in within or within["text->text"].candidates == len(set(found["text"].labels["text"])) - 1


def test_runs_twins_heads_and_mining_ask_with_the_same_words(model, data, tmp_path):
    import pyarrow.parquet as pq

    from mmtune.comparison.confusable import accuracy, freeze
    from mmtune.relevance.items import take_rows
    from mmtune.relevance.trec_files import write_run

    rows = mmtune.open_data(data)
    found = embed_data(model, rows)
    scores = {i: found["text"].queries[n] @ found["image"].vectors.T for n, i in enumerate(rows.ids)}
    write_run(tmp_path / "run", found, ("text", "image"), k=3)
    for line in (tmp_path / "run").read_text().splitlines():
        query, _, item, _, score, _ = line.split()
        assert float(score) == pytest.approx(scores[query][rows.ids.index(item)], abs=1e-5)
    few = take_rows(found["text"], np.array([3, 1]))
    np.testing.assert_array_equal(few.queries, found["text"].queries[[3, 1]])
    twins = freeze(found, ("text", "image"))
    right, queries = accuracy(twins, found)
    for value, query, t in zip(right, queries, twins.twins, strict=True):
        gap = scores[query][rows.ids.index(t.right)] - scores[query][rows.ids.index(t.twin)]
        assert value == (1 if gap > 0 else 0) or abs(gap) < 1e-6
    mmtune.mine(model, data, tmp_path / "n.parquet", options={"directions": ["text->image"]}, quiet=True)
    table = pq.read_table(tmp_path / "n.parquet").to_pylist()
    assert table
    for row in table:
        assert row["score"] == pytest.approx(scores[row["query_id"]][rows.ids.index(row["negative_id"])], abs=1e-5)


def test_class_names_have_words_of_their_own(model, data):
    rows = mmtune.open_data(data)
    described = embed_classes(model, rows)
    assert list(described) == ["text"] and embed_classes(mmtune.load("tiny:clip"), rows) == {}
    want = model.encode(text="a red square", role="zero_shot")
    np.testing.assert_allclose(described["text"].vectors[0], want, atol=1e-6)
    from mmtune.evaluation.tasks.classify import classifications, classify_by_descriptions

    vectors = embed_data(model, rows)
    (found,) = classifications(vectors, described)
    assert found.to_dict() == classify_by_descriptions({**vectors, **described}, ("image", "text")).to_dict()


def test_training_draws_what_retrieval_uses(model):
    seen = []

    def inner(value, rng=None):
        seen.append(value)
        return {"ids": torch.zeros(1)}

    drawn = with_training_prompts(inner, model.prompts, "text")
    for n in range(400):
        drawn("shoe", random.Random(n))
    assert set(seen) == {"a thing: shoe", "find: shoe"} and 160 < seen.count("find: shoe") < 240
    three = parse_prompts({"text": {"query": ["1 {}", "2 {}", "3 {}"]}})  # bare words are the other half
    seen.clear()
    for n in range(600):
        with_training_prompts(inner, three, "text")("x", random.Random(n))
    assert 240 < seen.count("x") < 360 and {"1 x", "2 x", "3 x", "x"} == set(seen)
    assert with_training_prompts(inner, {}, "text") is inner
    assert with_training_prompts(inner, parse_prompts({"text": {"zero_shot": "a {}"}}), "text") is inner


@pytest.mark.parametrize("tune", ["full", {"image": "full", "text": "frozen"}])
def test_a_recipe_trains_and_keeps_them(root, data, tune, monkeypatch):
    from mmtune.backbones.tiny import TinyText

    seen, inner = set(), TinyText.__call__
    monkeypatch.setattr(TinyText, "__call__", lambda self, s, rng=None: seen.add(s.split()[0]) or inner(self, s, rng))
    name = f"run-{len(str(tune))}"
    out = mmtune.train(recipe(root, data, name, prompts=BOTH, tune=tune, val=data), quiet=True)
    assert {"find:", "a"} == seen
    tuned = mmtune.load(out["artifact"])
    assert tuned.prompts == parse_prompts(BOTH) and tuned.fingerprint == out["fingerprint"]
    assert mmtune.evaluate(tuned, data, allow_trained=True).to_dict()["directions"] == out["metrics"]["directions"]
    kept = mmtune.train(recipe(root, data, name + "+", model=out["artifact"]), quiet=True)  # no `prompts`: the base's own
    assert mmtune.load(kept["artifact"]).prompts == tuned.prompts
    bare = mmtune.train(recipe(root, data, name + "-", model=out["artifact"], prompts={}), quiet=True)
    assert mmtune.load(bare["artifact"]).prompts == {}


def test_adapters_carry_them(root, data):
    pytest.importorskip("peft", reason="LoRA needs peft")
    from mmtune.training.tuning.adapter_files import load_adapters

    out = mmtune.train(recipe(root, data, "lora", prompts=BOTH, tune={"how": "lora", "rank": 2}), quiet=True)
    again = load_adapters(root / "lora" / "adapters")
    assert again.prompts == parse_prompts(BOTH)
    np.testing.assert_allclose(
        again.encode(text=TEXTS, role="query"), mmtune.load(out["artifact"]).encode(text=TEXTS, role="query"), atol=1e-5
    )


@pytest.mark.parametrize(
    "prompts,says",
    [
        ({"audio": "{}"}, "prompts.audio: prompts are templates for texts, but audio is not a text modality"),
        ({"txt": {"query": "q {}"}}, "prompts.txt: no modality called 'txt'; prompts are for text"),
        (
            {"text": {"query": {"find": None}}},
            'prompts.text.query: must be a template, or a list of them, each in quotes (e.g. "find {}")',
        ),
        ({"text": "no place"}, "prompts.text.default: 'no place' must contain {} exactly once"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(root, data, prompts, says):
    with pytest.raises(RecipeError) as e:
        mmtune.train(recipe(root, data, "bad", prompts=prompts), quiet=True)
    assert says in str(e.value) and "\n" not in str(e.value) and not (root / "bad").exists()


def test_prompts_for_a_tower_that_is_not_there():
    with pytest.raises(RecipeError, match=r"prompts.text: this model has no text tower; it has image, audio"):
        mmtune.load("image=tiny:image,audio=tiny:audio").set_prompts({"text": {"query": ["q {}"]}})


def test_embed_writes_one_role_and_says_so(root, data, capsys):
    model = mmtune.load("tiny:clip")
    model.set_prompts(parse_prompts(BOTH))
    save(model, root / "roles")
    out = str(root / "vectors")
    assert main(["embed", str(root / "roles"), data, "--out", out, "--role", "query", "--only", "text", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["role"] == "query"
    assert main(["embed", str(root / "roles"), data, "--out", out, "--only", "text"]) == 2
    assert "contains embeddings of the prompt role 'query', not None" in capsys.readouterr().err
    assert main(["embed", str(root / "roles"), data, "--out", out + "2", "--role", "question"]) == 2
    err = capsys.readouterr().err.strip()
    assert "role 'question': this model has no such prompt" in err and err.count("\n") == 0
