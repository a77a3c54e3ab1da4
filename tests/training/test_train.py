"""The trainer on real shards: it learns, stops, resumes to identical weights, and refuses bad recipes with one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import mmtune
from mmtune.errors import DataError, MmtuneError, ModelError, RecipeError, TrainingError
from mmtune.training.loop import Trainer
from tests.support import corpora
from tests.support.signalled import NO_SIGNAL, Signal, mmtune_process


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


def recipe(root: Path, run: Path, **changes) -> dict:
    """One that runs in a second; `changes` are dotted keys with _ for the dot's block, e.g. train={"epochs": 2}."""
    base = {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(root), "val": corpora.packed(root, 12, 1)},
        "train": {"epochs": 3, "batch_size": 8, "lr": 1e-3, "warmup": 0.1, "precision": "fp32"},
        "run": {"dir": str(run)},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return base


def weights(run: Path) -> bytes:
    return (run / "artifact" / "weights.safetensors").read_bytes()


def test_learns_and_writes_a_run(root, tmp_path):
    before = mmtune.evaluate(mmtune.load("tiny:clip"), corpora.packed(root, 12, 1))
    out = mmtune.train(recipe(root, tmp_path / "run", train={"epochs": 12}), quiet=True)
    after = mmtune.evaluate(out["artifact"], corpora.packed(root, 12, 1))
    assert after.metric("map") > before.metric("map") + 0.2 and after.metric("hit@1") == 1.0
    assert out["metrics"]["directions"].keys() == {"image->text", "text->image", "image->image"}
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "artifact",
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in lines if "loss" in r]
    assert len(losses) == out["steps"] == 36 and losses[-1] < losses[0]
    assert sum("val metric" in r for r in lines) == 12
    assert len(list((run / "checkpoints").iterdir())) == 4  # the last, and the best three
    assert list((run / "tensorboard").glob("events*"))
    assert json.loads((run / "environment.json").read_text())["versions"]["torch"]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["weight_decay"] == 0.05


def test_golden_losses_of_five_steps(root, tmp_path):
    """A refactor must reproduce these, from the first commit that had them."""
    mmtune.train(recipe(root, tmp_path / "run", train={"epochs": 5 / 3}), quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in lines if "loss" in r]
    assert len(losses) == 5
    np.testing.assert_allclose(losses, GOLDEN, rtol=2e-3)


GOLDEN = [1.979328, 3.63099, 2.018844, 0.871922, 0.490232]


def test_three_modalities_rows_that_lack_one_and_chosen_pairs(root, tmp_path):
    mixed = [corpora.packed(root), {"path": corpora.packed(root, 18, 3, ("audio", "text")), "weight": 0.5}]
    out = mmtune.train(
        recipe(
            root,
            tmp_path / "run",
            model="tiny:all",
            data={"train": mixed},
            pairs=[["text", "image"], ["text", "audio"]],
            train={"epochs": 8},
        ),
        quiet=True,
    )
    result = mmtune.evaluate(out["artifact"], corpora.packed(root, 12, 1))
    assert result.metric("map", "text->audio") > 0.8 and result.metric("map", "text->image") > 0.8
    assert "image->audio" in result.directions
    assert out["pairs"] == 8 * (24 + 9)  # half of the second set's rows an epoch


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_stopped_and_resumed_is_bit_identical(root, tmp_path, stop_after, monkeypatch):
    base = recipe(root, tmp_path / "whole", augment={"image": {"crop": 0.7, "flip": True}}, train={"checkpoint_every": 2})
    whole = mmtune.train(base, quiet=True)
    base["run"] = {"dir": str(tmp_path / "parts")}

    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == stop_after:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):  # as a kill: nothing is saved at this moment
        mmtune.train(base, quiet=True)
    monkeypatch.undo()
    again = mmtune.train(base, resume=True, quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert again["fingerprint"] == whole["fingerprint"]

    def series(run: str) -> list:
        rows = [json.loads(x) for x in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in r.items() if k not in ("pairs_per_second", "wait")} for r in rows]

    assert series("parts") == series("whole")


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_is_bit_identical(root, tmp_path):
    """SIGKILL of the real command at a random step, again and again, until it gets through."""
    for name in ("whole", "killed"):
        config = recipe(root, tmp_path / name, train={"epochs": 6, "checkpoint_every": 1})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    assert mmtune_process("train", tmp_path / "whole.yaml", "--quiet", stdout=None, stderr=None).wait() == 0
    rng, kills = np.random.default_rng(0), 0
    while True:
        at = Signal("mmtune.training.metrics_log:append_jsonl", rng.integers(1, 4), signal.SIGKILL) if kills < 4 else NO_SIGNAL
        process = mmtune_process("train", tmp_path / "killed.yaml", "--resume", "--quiet", at=at)
        _, error = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error
        kills += 1
    assert kills >= 1
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_ctrl_c_saves_a_checkpoint_and_prints_how_to_resume(root, tmp_path):
    base = recipe(root, tmp_path / "run", train={"epochs": 500})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(base))
    command = [sys.executable, "-m", "mmtune", "train", str(tmp_path / "r.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    mark = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and (not mark.exists() or not mark.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in out and "Traceback" not in err
    assert (tmp_path / "run" / "checkpoints" / "last" / "trainer_state.json").exists()


def test_a_nan_loss_stops_the_run_and_names_the_rows(root, tmp_path, monkeypatch):
    base = recipe(root, tmp_path / "run", train={"lr": 1e-3})
    from mmtune.model.dual_encoder import Model

    encode = Model.encode_inputs
    monkeypatch.setattr(Model, "encode_inputs", lambda self, m, x: encode(self, m, x) * (float("nan") if self.training else 1))
    with pytest.raises(TrainingError, match=r"step 0: the loss is nan.*row ids of the batch: 0-\d{3}") as e:
        mmtune.train(base, quiet=True)
    listed = json.loads((tmp_path / "run" / "not_finite_step_0.json").read_text())["ids"]
    assert len(listed) == 8 and listed[0] in str(e.value)


def test_early_stopping(root, tmp_path):
    out = mmtune.train(recipe(root, tmp_path / "run", train={"epochs": 50, "lr": 1e-9, "patience": 2}), quiet=True)
    assert out["steps"] == 3 * 3  # the first epoch is the best, two more without a better one


def test_a_run_directory_is_not_overwritten_nor_resumed_with_another_recipe(root, tmp_path):
    base = recipe(root, tmp_path / "run", train={"epochs": 1})
    first = mmtune.train(base, quiet=True)
    with pytest.raises(TrainingError, match="already holds a run: add --resume"):
        mmtune.train(base, quiet=True)
    with pytest.raises(TrainingError, match=r"the run to resume has another value of train\.lr"):
        mmtune.train({**base, "train": {**base["train"], "lr": 0.5}}, resume=True, quiet=True)
    assert mmtune.train(base, resume=True, quiet=True)["fingerprint"] == first["fingerprint"]  # finished: nothing to do


def test_a_recipe_of_the_users_own_is_never_overwritten(root, tmp_path):
    import yaml

    path = tmp_path / "recipe.yaml"
    base = recipe(root, tmp_path, train={"epochs": 1})
    path.write_text("# mine\n" + yaml.safe_dump(base))
    mine = path.read_bytes()
    with pytest.raises(TrainingError, match=r"a recipe of your own.*another train\.lr.*choose another run\.dir"):
        mmtune.train(path, ["train.lr=0.5"], quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"] and path.read_bytes() == mine
    mmtune.train(path, quiet=True)  # the run's own recipe says the same
    assert path.read_bytes() == mine and (tmp_path / "artifact" / "mmtune.json").is_file()
    mmtune.train(path, resume=True, quiet=True)
    assert path.read_bytes() == mine


def test_a_folder_in_the_place_of_the_artifact_is_refused_before_anything_is_trained(root, tmp_path):
    (tmp_path / "run" / "artifact").mkdir(parents=True)
    (tmp_path / "run" / "artifact" / "thesis.tex").write_text("mine")
    with pytest.raises(ModelError, match=r"thesis\.tex"):
        mmtune.train(recipe(root, tmp_path / "run", train={"epochs": 1}), quiet=True)
    assert (tmp_path / "run" / "artifact" / "thesis.tex").read_text() == "mine"


def test_mining_in_rounds_and_resumed_is_bit_identical(root, tmp_path, monkeypatch):
    changes = {
        "mining": {"rounds": 2, "negatives": 2, "use": {"negatives_per_query": 1, "confusable": 0.5}},
        "train": {"epochs": 6},
    }
    base = recipe(root, tmp_path / "whole", **changes)
    joined, step = [], Trainer.step

    def counted(self, batch):
        joined.append(int((~batch.is_query).sum()))
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    mmtune.train(base, quiet=True)
    assert sum(joined[:6]) == 0 and sum(joined[6:]) > 0  # the first two epochs warm up; then mined rows join as candidates
    assert {p.name for p in (tmp_path / "whole" / "mining").glob("*.parquet")} == {"round-0.parquet", "round-1.parquet"}
    base["run"] = {"dir": str(tmp_path / "parts")}

    def interrupted(self, batch):
        if self.state.step == 14:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(base, quiet=True)
    monkeypatch.undo()
    mmtune.train(base, resume=True, quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_tables_mined_by_an_earlier_run_without_a_checkpoint_are_not_used(root, tmp_path):
    changes = {"mining": {"rounds": 1, "negatives": 2}, "train": {"epochs": 2}}
    first = recipe(root, tmp_path / "run", **changes)
    mmtune.train(first, quiet=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if it had been killed before its first checkpoint
    other = {**first, "model": "tiny:clip@3"}
    reused = mmtune.train(other, quiet=True)
    fresh = mmtune.train({**other, "run": {"dir": str(tmp_path / "fresh")}}, quiet=True)
    assert reused["fingerprint"] == fresh["fingerprint"]


def test_a_run_that_failed_before_its_first_step_is_started_anew(root, tmp_path):
    with pytest.raises(DataError):
        mmtune.train(recipe(root, tmp_path / "run", data={"train": str(tmp_path / "none")}), quiet=True)
    assert (tmp_path / "run" / "recipe.yaml").exists()
    assert mmtune.train(recipe(root, tmp_path / "run", train={"epochs": 1}), quiet=True)["steps"] == 3


BAD = [
    ({"mining": {"round": 2}}, r"unknown key mining\.round; did you mean mining\.rounds\?"),
    ({"gate": {"min_gian": 0.1}}, r"gate\.min_gian: unknown; did you mean min_gain\?"),
    ({"train": {"epoch": 3}}, r"unknown key train\.epoch; did you mean train\.epochs\?"),
    ({"trian": {}}, r"unknown key trian; did you mean train\?"),
    ({"data": {"trains": "x"}}, r"unknown key data\.trains; did you mean data\.train\?"),
    ({"train": {"lr": "fast"}}, r"train\.lr: .*number.*'fast'"),
    ({"train": {"batch_size": 1}}, r"train\.batch_size: .*greater than or equal to 2"),
    ({"pairs": [["image", "smell"]]}, "no modality called 'smell'"),
    ({"pairs": [["image", "audio"]]}, r"pairs: \['image', 'audio'\]: audio must be in model and data"),
    ({"augment": {"image": {"crops": 0.5}}}, r"augment\.image\.crops: unknown; known: crop"),
    ({"objective": [{"loss": "info_nec"}]}, r"objective\[0\].*info_nec.*info_nce"),
    ({"train": {"metric": "mapp"}}, r"train\.metric: no metric 'mapp'; there are: hit@1"),
    ({"data": {"cache": "many"}}, r"data\.cache: 'many' is not a size"),
]


@pytest.mark.parametrize("change, message", BAD)
def test_bad_recipes_name_the_key(root, tmp_path, change, message):
    with pytest.raises(MmtuneError, match=message):
        mmtune.train(recipe(root, tmp_path / "run", **change), quiet=True)


def test_data_without_a_pair_and_val_without_a_direction(root, tmp_path):
    with pytest.raises(RecipeError, match="no row has two modalities of the model"):
        mmtune.train(recipe(root, tmp_path / "a", data={"train": corpora.packed(root, 12, 5, ("image",))}), quiet=True)
    with pytest.raises(RecipeError, match=r"data\.val: .* has no row for the trained directions"):
        mmtune.train(
            recipe(root, tmp_path / "b", data={"val": corpora.packed(root, 12, 5, ("image",))}, train={"epochs": 1}), quiet=True
        )
    with pytest.raises(DataError, match="no_such"):
        mmtune.train(recipe(root, tmp_path / "c", data={"train": str(tmp_path / "no_such")}), quiet=True)


def test_recipe_file_and_overrides(root, tmp_path):
    (tmp_path / "r.yaml").write_text("model: ???\ndata: {train: x}\ntrain: {epochs: 3}\n")
    with pytest.raises(RecipeError, match="model: is missing"):
        mmtune.train(tmp_path / "r.yaml")
    from mmtune.recipe.recipe import Recipe

    found = Recipe.load(
        tmp_path / "r.yaml",
        ["model=tiny:clip", "train.lr=2e-4", "data.train=[a,{path: b, weight: 2}]", "augment.image={crop: 0.5}"],
    )
    assert found.model == "tiny:clip" and found.train.lr == 2e-4 and found.train.epochs == 3
    assert [(s.path, s.weight) for s in found.data.training_sets] == [("a", 1.0), ("b", 2.0)]
    assert {m: o.model_dump(exclude_unset=True) for m, o in found.augment.items()} == {"image": {"crop": 0.5}}
    with pytest.raises(RecipeError, match="is not an override"):
        Recipe.load(tmp_path / "r.yaml", ["train.lr"])
    with pytest.raises(RecipeError, match="no such recipe"):
        Recipe.load(tmp_path / "none.yaml")


def test_identical_texts_are_encoded_once_and_are_not_negatives(root):
    from mmtune.data.loader.loader import Loader
    from mmtune.data.shards.dataset import open_data
    from mmtune.data.shards.weighted_concat import WeightedConcat

    data = WeightedConcat([open_data(corpora.packed(root))], [1.0])
    model = mmtune.load("tiny:clip")
    stream = Loader(data, {m: t.preprocess for m, t in model.towers.items()}, {})
    batch = stream.batch(np.arange(12), 0)
    assert len(batch.inputs["text"]["ids"]) == 6 and len(batch.inputs["image"]["planes"]) == 12
    assert batch.item_of_row["text"].tolist() == [0, 1, 2, 3, 4, 5] * 2
    hard = {"image->text": np.array([[0, 2], [4, 4]]), "text->image": np.array([[1, 0], [4, 9]])}
    wide = stream.batch(np.arange(3), 0, hard)
    assert wide.is_query.tolist() == [True] * 3 + [False] * 3 and wide.ids[3:] == ["0-004", "0-004", "0-009"]
    assert wide.item_of_row["text"].tolist() == [0, 1, 2, 3, -1, -1] and wide.item_of_row["image"].tolist() == [
        0,
        1,
        2,
        -1,
        3,
        4,
    ]
    assert wide.hard_negatives["image->text"].tolist() == [[0, 2], [3, 3]] and wide.hard_negatives["text->image"].tolist() == [
        [1, 0],
        [4, 5],
    ]
    assert len(wide.inputs["text"]["ids"]) == 4 and len(wide.inputs["image"]["planes"]) == 5, "only what was mined is read"
    assert batch.ids[7] == "0-007" and batch.labels["group"][0] == batch.labels["group"][6] != batch.labels["group"][1]


@pytest.mark.parametrize("how", ["random", "spread"])
def test_an_epoch_has_every_row_once(root, how):
    from mmtune.data.loader.batch_plan import plan_batches
    from mmtune.data.shards.dataset import open_data
    from mmtune.data.shards.weighted_concat import WeightedConcat

    data = WeightedConcat([open_data(corpora.packed(root))], [1.0])
    usable = np.ones(24, bool)
    usable[3] = False
    batches = plan_batches(data, usable, 7, 0, how)
    for epoch in range(3):
        rows = np.concatenate(batches(epoch))
        assert sorted(rows) == [i for i in range(24) if i != 3]
    assert [b.tolist() for b in batches(1)] == [b.tolist() for b in batches(1)] != [b.tolist() for b in batches(2)]
    if how == "spread":
        hands = [data.labels["group"][b] for b in batches(0)]
        assert sorted(map(len, hands)) == [5, 6, 6, 6] and all(len(set(h)) == len(h) for h in hands)
