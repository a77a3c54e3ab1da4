"""LP-FT, replay of general data, pooling of windows, and adapters as a MODEL: small runs of the real trainer."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import MissingExtra, MmtuneError, ModelError
from mmtune.evaluation.trained_pairs import trained_pairs, untrained_directions
from mmtune.model import artifact
from mmtune.recipe.recipe import Recipe
from mmtune.training.loop import Trainer
from mmtune.training.tuning.lp_ft import head_stage
from mmtune.training.tuning.tune import parse_tune
from tests.support import checkpoints, corpora
from tests.support.signalled import Signal, mmtune_process


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


def recipe(root, run, model="tiny:clip", **more):
    base = {
        "model": model,
        "data": {"train": corpora.packed(root), "val": corpora.packed(root, 12, 1)},
        "pairs": [["image", "text"]],
        "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "warmup": 0, "precision": "fp32", "schedule": "constant"},
        "run": {"dir": str(run)},
    }
    for key, value in more.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return base


# --- heads first ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["full", *(pytest.param(h, marks=pytest.mark.slow) for h in ("lora", {"image": "partial", "text": "frozen"}))]
)
def test_heads_are_trained_first_and_then_the_towers(root, tmp_path, how):
    first = {"head_first": 2, "head_lr": 1e-2}
    tune = {"how": how, **first} if isinstance(how, str) else {"image": {"how": "partial", **first}, "text": "frozen"}
    learnt = ["image", "text"] if isinstance(how, str) else ["image"]
    out = mmtune.train(recipe(root, tmp_path / "run", tune=tune), quiet=True)
    stage = artifact.load(tmp_path / "run" / "head_first" / "artifact")
    before, between = dict(mmtune.load("tiny:clip").named_parameters()), dict(stage.named_parameters())
    assert all(torch.equal(before[n], between[n]) for n in before if "scale" not in n)  # only heads and temperatures
    assert sorted(stage.heads) == learnt and all(not torch.equal(h.weight, torch.eye(64)) for h in stage.heads.values())
    tuned = artifact.load(out["artifact"])
    assert sorted(tuned.heads) == learnt and tuned.info["base"] == "tiny:clip"
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    staged = [json.loads(x) for x in (tmp_path / "run" / "head_first" / "metrics.jsonl").read_text().splitlines()]
    assert [sum("loss" in r for r in x) for x in (lines, staged)] == [3, 6]
    assert staged[0]["lr"] == 1e-2 and lines[0]["lr"] == 1e-3
    after = dict(tuned.named_parameters())
    assert any(not torch.equal(before[n], after[n]) for n in before if "scale" not in n)
    drift = sum((after[f"heads.{m}.weight"] - between[f"heads.{m}.weight"]).abs().max().item() for m in learnt)
    assert 0 < drift < 0.02 * len(learnt)  # three steps of 1e-3 from where the first stage ended
    if how == "lora":
        again = artifact.load(str(tmp_path / "run" / "adapters"))
        np.testing.assert_allclose(again.encode(text="a red square"), tuned.encode(text="a red square"), atol=1e-5)


@pytest.mark.parametrize("where", ["first", "second"])
def test_heads_first_resumes_in_either_stage(root, tmp_path, where, monkeypatch):
    more = {"tune": {"how": "full", "head_first": 1}, "train": {"epochs": 1, "checkpoint_every": 1}}
    whole = mmtune.train(recipe(root, tmp_path / "whole", **more), quiet=True)
    step, seen = Trainer.step, []

    def interrupted(self, batch):
        seen.append((self.directory.name == "head_first", self.state.step))
        if seen[-1] == (where == "first", 2):
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    base = recipe(root, tmp_path / "parts", **more)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(base, quiet=True)
    monkeypatch.undo()
    steps = []
    monkeypatch.setattr(Trainer, "step", lambda self, batch: steps.append(self.directory.name) or step(self, batch))
    assert mmtune.train(base, resume=True, quiet=True)["fingerprint"] == whole["fingerprint"]
    assert steps == (["head_first"] + ["parts"] * 3 if where == "first" else ["parts"])
    changed = recipe(root, tmp_path / "parts", **{**more, "tune": {"how": "full", "head_first": 2}})
    with pytest.raises(MmtuneError, match="another value of tune.head_first"):
        mmtune.train(changed, resume=True, quiet=True)


def test_interpolation_starts_from_the_base_not_from_the_trained_heads(root, tmp_path):
    more = {"tune": {"how": "full", "head_first": 1, "head_lr": 0.05}, "interpolate": {"coefficients": [0, 1]}}
    more["data"] = {"retention": corpora.packed(root, 12, 2)}
    mmtune.train(recipe(root, tmp_path / "run", **more), quiet=True)
    point = json.loads((tmp_path / "run" / "interpolation.json").read_text())["points"][0]
    val = mmtune.evaluate("tiny:clip", corpora.packed(root, 12, 1))
    assert point["domain"] == pytest.approx(np.mean([val.metric("map", d) for d in ("image->text", "text->image")]), abs=1e-6)


@pytest.mark.slow
def test_a_killed_first_stage_is_resumed(root, tmp_path):
    """SIGKILL after the first checkpoint; then --resume ends as an uninterrupted run."""
    more = {"tune": {"how": "full", "head_first": 6}, "train": {"epochs": 1, "checkpoint_every": 2}, "data": {"val": None}}
    command = [sys.executable, "-m", "mmtune", "train", "--json"]
    for name in ("run", "whole"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe(root, tmp_path / name, **more)))
    child = mmtune_process(
        "train", tmp_path / "run.yaml", at=Signal("mmtune.training.checkpoint:Checkpoints.save", 1, signal.SIGKILL)
    )
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    place = tmp_path / "run" / "head_first" / "checkpoints" / "last" / "trainer_state.json"
    assert place.exists() and not (tmp_path / "run" / "artifact").exists()
    marks = []
    for argv in (["--resume", str(tmp_path / "run.yaml")], [str(tmp_path / "whole.yaml")]):
        done = subprocess.run([*command, *argv], capture_output=True, text=True, check=True)
        marks.append(json.loads(done.stdout)["fingerprint"])
    assert marks[0] == marks[1]


BAD = [
    (
        {"tune": {"how": "head", "head_first": 1}},
        r"head_first: can only be used with how: full, partial, lora, qlora; how: head trains",
    ),
    (
        {"tune": {"image": {"how": "full", "head_first": 1}, "text": {"how": "full", "head_first": 2}}},
        "head_first and head_lr differ",
    ),
    ({"tune": {"how": "full", "head_first": -1}}, r"tune\.head_first: .*greater than or equal to 0"),
    (
        {"window_pooling": {"text": "max"}},
        r"window_pooling\.text: this model has no such modality whose values are cut into windows; possible: image",
    ),
    ({"window_pooling": {"image": "median"}}, r"window_pooling\.image: 'median'; did you mean 'mean'\?"),
    (
        {"augment": {"text": {"mixup": 0.2}}},
        r"augment\.text\.mixup: signals of this kind cannot be mixed; there are: image, audio",
    ),
    ({"augment": {"image": {"mixup": 0.7}}}, r"augment\.image\.mixup: 0\.7 is not a number from 0 to 0\.5"),
    ({"augment": {"image": {"perspectiv": 0.7}}}, r"augment\.image\.perspectiv: unknown; known: crop"),
]


@pytest.mark.parametrize("change, message", BAD, ids=[m[:24] for _, m in BAD])
def test_bad_input_is_one_line(root, tmp_path, change, message):
    with pytest.raises(MmtuneError, match=message) as e:
        mmtune.train(recipe(root, tmp_path / "run", **change), quiet=True)
    assert "\n" not in str(e.value)


def test_qlora_without_bitsandbytes_names_the_extra(root, tmp_path, monkeypatch):
    place = f"hf:{checkpoints.clip(tmp_path / 'clip')}"
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r'^tune.image: qlora needs bitsandbytes: pip install "mmtune\[qlora\]"') as e:
        mmtune.train(recipe(root, tmp_path / "run", place, tune="qlora"), quiet=True)
    assert "\n" not in str(e.value)


def test_the_first_stage_has_the_recipe_of_the_run(root, tmp_path):
    parsed = Recipe.model_validate(
        recipe(root, tmp_path, tune={"how": "full", "head_first": 3}, augment={"image": {"flip": True}})
    )
    stage = head_stage(parsed, parse_tune(parsed.tune, ["image", "text"], ["image", "text"]))
    assert (
        stage.train.epochs == 3
        and stage.augment == {}
        and {m: t.how for m, t in stage.tune.items()} == {"image": "head", "text": "head"}
    )
    assert stage.train.lr == parsed.train.lr and stage.run.dir.endswith("head_first")
    assert head_stage(parsed, parse_tune("full", ["image", "text"], ["image", "text"])) is None


# --- replay --------------------------------------------------------------------------------------------------------------


def test_general_rows_are_replayed_by_their_weight(root, tmp_path):
    domain, general = corpora.packed(root, 24, 0), corpora.packed(root, 12, 5)
    both = WeightedConcat([open_data(domain), open_data(general)], [1.0, 0.5])
    drawn = [both.epoch_rows(np.random.default_rng([0, e, 1])) for e in range(4)]
    assert all(len(r) == 30 and (r >= 24).sum() == 6 for r in drawn)
    assert len(set(np.concatenate(drawn).tolist())) > 30  # other general rows each epoch
    sources = [domain, {"path": general, "weight": 0.5}]
    out = mmtune.train(recipe(root, tmp_path / "run", data={"train": sources}), quiet=True)
    assert out["pairs"] == 30
    with pytest.raises(
        MmtuneError, match="data.retention: 12 of the 12 rows of .* are trained on"
    ):  # what is replayed judges nothing
        mmtune.train(recipe(root, tmp_path / "other", data={"train": sources, "retention": general}), quiet=True)


# --- long signals --------------------------------------------------------------------------------------------------------


def test_window_pooling_is_mean_or_max(tmp_path):
    model = mmtune.load("tiny:clap")
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.normal(size=24000) * np.repeat([1, 3, 0.2], 8000)).astype(np.float32)
    parts = np.stack([model.encode(audio=(samples[i : i + 8000], 8000)) for i in (0, 8000, 16000)])

    def unit(x):
        return x / np.linalg.norm(x)

    mean, mark = model.encode(audio=(samples, 8000)), model.fingerprint
    np.testing.assert_allclose(mean, unit(parts.mean(0)), atol=1e-6)
    model.set_window_pooling({"audio": "max"})
    assert model.fingerprint != mark
    np.testing.assert_allclose(model.encode(audio=(samples, 8000)), unit(parts.max(0)), atol=1e-6)
    short = (samples[:8000], 8000)
    np.testing.assert_allclose(model.encode(audio=short), parts[0], atol=1e-6)
    artifact.save(model, tmp_path / "a")
    again = artifact.load(tmp_path / "a")
    assert again.window_pooling == {"audio": "max"} and again.fingerprint == model.fingerprint
    np.testing.assert_allclose(again.encode(audio=(samples, 8000)), model.encode(audio=(samples, 8000)), atol=1e-6)
    again.set_window_pooling({"audio": "mean"})
    assert again.fingerprint == mark  # what is the default leaves no mark


def test_the_artifact_has_the_window_pooling_of_its_recipe(root, tmp_path):
    more = {"pairs": [["audio", "text"]], "window_pooling": {"audio": "max"}, "tune": "head"}
    more["augment"] = {"text": {"drop_words": 0.1}}
    out = mmtune.train(recipe(root, tmp_path / "run", "tiny:clap", **more), quiet=True)
    assert artifact.load(out["artifact"]).window_pooling == {"audio": "max"}


@pytest.mark.parametrize(
    "kind, options", [("audio", {"mixup": 0.4, "mask_time": 0.2, "mask_freq": 0.2}), ("image", {"trivial": True, "mixup": 0.3})]
)
def test_augmented_training_resumes_bit_identically(root, tmp_path, kind, options, monkeypatch):
    more = {"pairs": [[kind, "text"]], "augment": {kind: options}, "train": {"epochs": 2, "checkpoint_every": 2}}
    whole = mmtune.train(recipe(root, tmp_path / "whole", "tiny:all", **more), quiet=True)
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    base = recipe(root, tmp_path / "parts", "tiny:all", **more)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(base, quiet=True)
    monkeypatch.undo()
    assert mmtune.train(base, resume=True, quiet=True)["fingerprint"] == whole["fingerprint"]


# --- adapters as a MODEL -------------------------------------------------------------------------------------------------


def test_an_adapters_directory_is_a_model(root, tmp_path, capsys):
    place = checkpoints.clip(tmp_path / "clip")
    out = mmtune.train(recipe(root, tmp_path / "run", f"hf:{place}", tune="lora"), quiet=True)
    folder, tuned = str(tmp_path / "run" / "adapters"), artifact.load(out["artifact"])
    found = mmtune.load(folder)
    words = ["a red square", "a blue one"]
    np.testing.assert_allclose(found.encode(text=words), tuned.encode(text=words), atol=1e-5)
    assert found.info["source"] == folder and found.info["base"] == f"hf:{place}" and found.info["seen"] == [["image", "text"]]
    assert dispatch("eval", [folder, corpora.packed(root, 12, 1), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)["directions"]["image->text"]["metrics"]["map"]
    assert said == pytest.approx(out["metrics"]["directions"]["image->text"]["metrics"]["map"], abs=1e-4)
    with pytest.raises(MmtuneError, match="the candidate was trained on 24 of these 24 rows"):
        mmtune.compare(f"hf:{place}", folder, corpora.packed(root))
    assert dispatch("eval", [str(tmp_path / "run"), corpora.packed(root, 12, 1)]) == 2  # a run is neither
    place.rename(tmp_path / "moved")
    with pytest.raises(
        ModelError, match=r"adapters: the base model of these adapters cannot be loaded \(hf:.*clip: no such directory\)"
    ) as e:
        mmtune.load(folder)
    assert "\n" not in str(e.value)
    again = artifact.load_adapters(folder, f"hf:{tmp_path / 'moved'}")
    np.testing.assert_allclose(again.encode(text=words), tuned.encode(text=words), atol=1e-5)
    checkpoints.clip(tmp_path / "clip", seed=1)
    with pytest.raises(
        ModelError, match="these adapters were trained on hf:.* and cannot be merged into a model with fingerprint"
    ):
        mmtune.load(folder)


# --- one space -----------------------------------------------------------------------------------------------------------


def test_directions_without_a_pair_are_marked(root, tmp_path):
    clip, clap = (f"hf:{getattr(checkpoints, n)(tmp_path / n)}" for n in ("clip", "clap"))
    model = {"image": clip, "audio": clap, "text": clip}
    assert trained_pairs(artifact.load(model)) == [("image", "text")]  # what the checkpoint itself was trained on
    assert trained_pairs(artifact.load("tiny:all")) == []
    more = {"pairs": [["text", "audio"]], "tune": {"audio": "lora", "text": "frozen"}}
    out = mmtune.train(recipe(root, tmp_path / "run", model, **more), quiet=True)
    assert out["metrics"]["untrained_directions"] == ["image->audio", "audio->image"]
    assert "image->audio, audio->image: the model was never trained on this pair" in str(out["result"])
    tuned = artifact.load(out["artifact"])
    assert tuned.info["seen"] == [["audio", "text"], ["image", "text"]] and tuned.info["pairs"] == [["text", "audio"]]
    result = mmtune.evaluate(tuned, corpora.packed(root, 12, 1))
    assert result.untrained_directions == ["image->audio", "audio->image"] and "image->audio" in result.directions
    on = recipe(root, tmp_path / "on", out["artifact"], pairs=[["image", "audio"]])
    assert "untrained_directions" not in mmtune.train(on, quiet=True)["metrics"]  # a chain of runs has seen all of them
    assert untrained_directions(mmtune.load("tiny:all"), ["image->audio"]) == []  # nothing is known of any training
