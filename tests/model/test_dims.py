"""Shorter vectors: the first N dimensions as a space of their own, in every verb, and each trained one reported."""

import json

import numpy as np
import pytest

import mmtune
from mmtune.cli import main
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import ModelError
from mmtune.model.artifact import save
from tests.support import corpora

TEXTS = ["a red square", "a blue square", "something else"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("dims")


@pytest.fixture(scope="module")
def data(root):
    return corpora.packed(root, 24, 0, ("image", "text"))


@pytest.fixture(scope="module")
def run(root, data):
    val = corpora.packed(root, 18, 1, ("image", "text"))
    recipe = {
        "model": "tiny:clip",
        "data": {"train": data, "val": val},
        "matryoshka": {"dims": [8, 16]},
        "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
        "run": {"dir": str(root / "run")},
    }
    return mmtune.train(recipe, quiet=True).to_dict() | {"val": val}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_prefix_is_the_first_numbers_of_unit_length_and_a_space_of_its_own(root):
    whole, short = mmtune.load("tiny:clip"), mmtune.load("tiny:clip", dim=16)
    found = short.encode(text=TEXTS)
    assert found.shape == (3, 16) and short.dim == 16 and short.width == whole.dim == 64
    np.testing.assert_allclose(found, unit(whole.encode(text=TEXTS)[:, :16]), atol=1e-6)
    assert short.fingerprint != whole.fingerprint == mmtune.load("tiny:clip", dim=64).fingerprint
    assert whole.settings == {} and whole.truncated(16).fingerprint == short.fingerprint and whole.dim == 64
    assert short.truncated(8).fingerprint == whole.truncated(8).fingerprint
    save(short, root / "short")
    again = mmtune.load(root / "short")
    assert again.dim == 16 and again.fingerprint == short.fingerprint
    np.testing.assert_array_equal(again.encode(text=TEXTS), found)


@pytest.mark.parametrize("dim", [0, -3, 65])
def test_a_dim_that_is_not_there_is_one_line(dim):
    with pytest.raises(ModelError, match=f"^dim {dim}: this model's embeddings have 64 dimensions; choose 1 to 64$"):
        mmtune.load("tiny:clip", dim=dim)


def test_long_sounds_are_averaged_before_they_are_cut():
    model = mmtune.load("tiny:all")
    long = (np.random.default_rng(0).normal(size=20000).astype(np.float32), 8000)
    want = model.encode(audio=[long])[:, :8]
    np.testing.assert_allclose(model.truncated(8).encode(audio=[long]), unit(want), atol=1e-6)


def test_eval_reports_every_trained_dim_without_encoding_again(run, monkeypatch):
    calls = []
    from mmtune.model.dual_encoder import Model

    inner = Model.encode_inputs
    monkeypatch.setattr(Model, "encode_inputs", lambda self, m, x: calls.append(m) or inner(self, m, x))
    result = mmtune.evaluate(run["artifact"], run["val"])
    assert sorted(calls) == ["image", "text"] and list(result.dims) == [8, 16, 64]
    for dim in (8, 16, 64):
        alone = mmtune.evaluate(run["artifact"], run["val"], dim=dim)
        block = result.to_dict()["dims"][str(dim)]
        assert block == {n: d.metrics for n, d in alone.directions.items()}
        assert alone.fingerprint == mmtune.load(run["artifact"], dim=dim).fingerprint
    assert block == {n: d["metrics"] for n, d in result.to_dict()["directions"].items()}
    assert list(mmtune.evaluate(run["artifact"], run["val"], dim=16).dims) == [8, 16]
    assert "dims" not in mmtune.evaluate("tiny:clip", run["val"]).to_dict()
    table = str(result).splitlines()
    assert sum(line.strip().startswith("text->image") for line in table) == 1 + 3
    assert "by dimensions" in result._repr_html_()


def test_an_artifact_knows_its_dims_and_a_short_copy_of_it_too(run, root):
    from mmtune.model.artifact.trained_rows import trained_on

    assert run["metrics"]["dims"].keys() == {"8", "16", "64"}
    model = mmtune.load(run["artifact"], dim=16)
    assert model.info["matryoshka"] == [8, 16]
    save(model, root / "copy")
    again = mmtune.load(root / "copy")
    assert again.info["matryoshka"] == [8, 16] and again.dim == 16 and again.info["pairs"] == model.info["pairs"]
    assert trained_on(root / "copy")["id"].tolist() == trained_on(run["artifact"])["id"].tolist()  # still refused on its rows
    card = (root / "copy" / "README.md").read_text()
    assert (
        "16 dimensions, cosine similarity (truncated from 64 dimensions)" in card
        and "trained for truncation (Matryoshka) to: 8 dimensions " in card
    )


def test_the_verbs_take_a_dim(run, root, capsys):
    out = root / "vectors"
    assert main(["embed", run["artifact"], run["val"], "--out", str(out), "--dim", "8", "--json"]) == 0
    meta = json.loads(capsys.readouterr().out)
    assert meta["dim"] == 8 and meta["fingerprint"] == mmtune.load(run["artifact"], dim=8).fingerprint
    assert main(["embed", run["artifact"], run["val"], "--out", str(out)]) == 2  # the whole vectors are another space
    assert "contains embeddings of another model" in capsys.readouterr().err
    assert main(["eval", run["artifact"], run["val"], "--dim", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == meta["fingerprint"]
    assert main(["eval", run["artifact"], run["val"], "--dim", "0"]) == 2
    assert capsys.readouterr().err.strip().endswith("dim 0: this model's embeddings have 64 dimensions; choose 1 to 64")
    same = ["compare", run["artifact"], run["artifact"], run["val"], "--json"]
    assert main([*same, "--dim", "8"]) == 1
    assert set(json.loads(capsys.readouterr().out)["fingerprints"].values()) == {meta["fingerprint"]}
    assert main([*same, "--dim", "8", "--base-dim", "64"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["fingerprints"] == {"base": run["fingerprint"], "candidate": meta["fingerprint"]}


def test_a_short_model_can_be_tuned_on(root, data):
    save(mmtune.load("tiny:clip", dim=16), root / "base")
    recipe = {
        "model": str(root / "base"),
        "data": {"train": data},
        "tune": {"image": "head", "text": "frozen"},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": str(root / "tuned")},
    }
    tuned = mmtune.load(mmtune.train(recipe, quiet=True)["artifact"])
    assert tuned.dim == 16 and tuned.heads["image"].weight.shape == (64, 64)
    want = mmtune.load("tiny:clip", dim=16).encode(text=TEXTS)
    np.testing.assert_allclose(tuned.encode(text=TEXTS), want, atol=1e-6)
    assert embed_data(tuned, mmtune.open_data(data))["image"].vectors.shape == (24, 16)
