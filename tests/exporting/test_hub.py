"""Upload to and load from a hub: a real HTTP server with the routes of the Hugging Face hub, spoken to by huggingface_hub."""

import numpy as np
import pytest
import yaml

import mmtune
from mmtune.cli import main
from mmtune.errors import ModelError
from tests.support import corpora
from tests.support.hub_server import running_hub

TEXTS = ["a red bag", "a blue one"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub(monkeypatch, tmp_path / "cache") as running:
        yield running


@pytest.fixture
def artifact(tmp_path):
    model = mmtune.load("tiny:clip@5", "cpu")
    data = corpora.packed(tmp_path, 12, 0, ("image", "text"))
    metrics = mmtune.evaluate(model, data).to_dict()
    info = {"base": "hf:openai/clip-vit-base-patch32", "tune": {"image": "lora"}, "steps": 120, "seed": 3}
    labels = {"id": np.arange(1, 5), "text": np.arange(1, 5)}
    model.save(tmp_path / "artifact", metrics=metrics, info=info, trained_on=labels)
    return tmp_path / "artifact"


def metadata(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_model_goes_to_the_hub_and_comes_back(hub, artifact, capsys):
    ours = mmtune.load(artifact, "cpu")
    done = ours.push_to_hub("shop/bags", license="apache-2.0", language=["en"], training_data="Photos of our own products.")
    assert done.model == "hub:shop/bags" and done.commit in done.url and done.fingerprint == ours.fingerprint
    theirs = mmtune.load("hub:shop/bags", "cpu")
    assert theirs.fingerprint == ours.fingerprint
    np.testing.assert_array_equal(theirs.encode(text=TEXTS), ours.encode(text=TEXTS))
    again = mmtune.Model.from_pretrained("shop/bags", "cpu", revision=done.commit)
    assert again.fingerprint == ours.fingerprint
    (files,) = hub.files["shop/bags"].values()
    assert (
        "trained_on.safetensors" not in files
        and files["weights.safetensors"] == (artifact / "weights.safetensors").read_bytes()
    )
    data, body = metadata(files["README.md"].decode())
    assert data["license"] == "apache-2.0" and data["library_name"] == "mmtune" and data["language"] == ["en"]
    assert data["base_model"] == "openai/clip-vit-base-patch32"
    measured = yaml.safe_load((artifact / "metrics.json").read_text())["directions"]["text->image"]["metrics"]
    values = {m["name"]: m["value"] for r in data["model-index"][0]["results"] for m in r["metrics"]}
    assert values["recall@10 text->image"] == pytest.approx(measured["recall@10"], abs=1e-4)
    for part in (
        "Photos of our own products.",
        "steps: 120",
        "| text->image |",
        'mmtune.load("hub:shop/bags")',
        ours.fingerprint,
    ):
        assert part in body
    assert main(["embed", "--help"]) == 0 and capsys.readouterr()


def test_the_command_uploads_an_export(hub, tmp_path, capsys):
    from tests.support import checkpoints

    clip = f"hf:{checkpoints.clip(tmp_path / 'clip')}"
    assert main(["export", clip, "--to", "hub", "--repo", "shop/clip", "--as", "hf", "--private"]) == 0
    assert "load it as hf:shop/clip" in capsys.readouterr().out and hub.private["shop/clip"]
    assert mmtune.load("hf:shop/clip", "cpu").fingerprint == mmtune.load(clip, "cpu").fingerprint
    data, body = metadata(hub.files["shop/clip"].popitem()[1]["README.md"].decode())
    assert data["library_name"] == "transformers" and 'CLIPModel.from_pretrained("shop/clip")' in body
    assert "Not stated by the author" in body


def test_what_is_wrong_is_said_in_one_line(hub, artifact, capsys, monkeypatch):
    with pytest.raises(ModelError, match="hub:shop/none: cannot be downloaded from the hub"):
        mmtune.load("hub:shop/none")
    with pytest.raises(ModelError, match="write hub:ORG/NAME"):
        mmtune.load("hub:bags")
    assert main(["export", str(artifact), "--to", "hub"]) == 2 and "needs --repo" in capsys.readouterr().err
    assert main(["export", str(artifact), "--to", "hub", "--repo", "bags"]) == 2 and "write ORG/NAME" in capsys.readouterr().err
    assert main(["export", str(artifact), "--to", "hf"]) == 2 and "--out DIR is missing" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert main(["export", str(artifact), "--to", "hub", "--repo", "shop/bags"]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_an_edited_artifact_of_the_hub_is_refused(hub, artifact):
    mmtune.push_to_hub(artifact, "shop/bags")
    (files,) = hub.files["shop/bags"].values()
    weights = bytearray(files["weights.safetensors"])
    weights[-1] ^= 1
    files["weights.safetensors"] = bytes(weights)
    with pytest.raises(ModelError, match="edited or damaged"):
        mmtune.load("hub:shop/bags")
