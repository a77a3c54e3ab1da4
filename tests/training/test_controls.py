"""Controls of a run: accumulation, validation, extension, unfreezing, rates of towers. Killed and resumed, each gives the same bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mmtune
from mmtune.errors import RecipeError, TrainingError
from mmtune.training.build_objective import build_objective
from mmtune.training.large_batch.accumulation import batches_of_steps
from mmtune.training.loop import Trainer
from mmtune.training.step import forward_backward
from tests.support import corpora
from tests.training.test_step import Toy, batch_with_inputs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("controls")


def recipe(root: Path, run: Path, train: dict, **blocks) -> dict:
    return {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(root), "val": corpora.packed(root, 12, 1)},
        "train": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "warmup": 1, "precision": "fp32", **train},
        "run": {"dir": str(run), "trackers": []},
        "runtime": {"threads": 1},  # a measured number of threads may change the last bit
        **blocks,
    }


def weights(run: Path) -> bytes:
    return (run / "artifact" / "weights.safetensors").read_bytes()


def series(run: Path) -> list[dict]:
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("pairs_per_second", "wait")} for r in rows]


TEXT_AND_IMAGE = {"image": {"how": "full", "unfreeze_every": 0.5}, "text": {"how": "full", "lr": 3e-4, "weight_decay": 0.2}}
CONTROLS = {
    "adamw_8bit": {"train": {"optimizer": {"name": "adamw_8bit", "min_8bit_size": 16}}},
    "adafactor": {"train": {"optimizer": "adafactor", "schedule": "linear", "min_lr": 0.1}},
    "lamb": {"train": {"optimizer": "lamb", "schedule": "wsd", "decay": 2}},
    "lion": {"train": {"optimizer": "lion", "lr": 1e-4}},
    "accumulation": {"train": {"gradient_accumulation_steps": 2, "micro_batch_size": 3}, "memory": {"size": 16}},
    "validation": {"train": {"validate_every": 2, "validate_at_start": True, "patience": 3, "ema": 0.9}},
    "unfreezing": {"train": {}, "tune": TEXT_AND_IMAGE},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_killed_and_resumed_is_bit_identical(root, tmp_path, name, monkeypatch):
    blocks = dict(CONTROLS[name])
    train = {**blocks.pop("train"), "checkpoint_every": 2}
    mmtune.train(recipe(root, tmp_path / "whole", train, **blocks), quiet=True)
    parts, step = recipe(root, tmp_path / "parts", train, **blocks), Trainer.step

    def killed(self, batch):
        if self.state.step == 3 and self.part.is_last:  # with accumulation: in the middle of a step
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(parts, quiet=True)
    monkeypatch.undo()
    mmtune.train(parts, resume=True, quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert series(tmp_path / "parts") == series(tmp_path / "whole")


# --- accumulation --------------------------------------------------------------------------------------------------------


def test_batches_of_steps_share_a_step_by_their_rows():
    parts = batches_of_steps([8, 8, 4, 6, 2], 2)
    assert [(p.weight, p.is_first, p.is_last) for p in parts] == [
        (0.5, True, False),
        (0.5, False, True),
        (4 / 10, True, False),
        (6 / 10, False, True),
        (1.0, True, True),
    ]


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_accumulated_gradient_is_the_weighted_mean_of_the_batches_gradients(micro_batch_size):
    objective = build_objective([{"loss": "info_nce"}], [("a", "b")])
    batch, summed = batch_with_inputs(), Toy().eval()
    want = 0.0
    for weight in (0.25, 0.75):
        alone = Toy().eval()
        forward_backward(alone, batch, objective)
        want = want + weight * torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None])
        forward_backward(summed, batch, objective, micro_batch_size=micro_batch_size, weight=weight)
    got = torch.cat([p.grad.flatten() for p in summed.parameters() if p.grad is not None])
    assert float((got - want).norm() / want.norm()) < 1e-6
    assert summed.bias.grad is None


def test_a_loss_over_rows_gets_the_gradient_of_the_unsplit_batch_and_a_contrastive_one_does_not(root, tmp_path):
    """mse of 24 rows in three batches accumulated equals one batch of 24; InfoNCE sees fewer negatives."""
    import csv

    from mmtune.data.pack.pack import pack

    source = corpora.source(tmp_path / "source", 24, 0, ("image", "text"))
    rows = list(csv.DictReader(source.open()))
    with source.open("w", newline="") as f:
        table = csv.DictWriter(f, [*rows[0], "score"])
        table.writeheader()
        table.writerows({**r, "score": i % 5 / 5} for i, r in enumerate(rows))
    pack(source, tmp_path / "data")
    for loss, equal in (("mse", True), ("info_nce", False)):
        norms = []
        for size, accumulate in ((24, 1), (8, 3)):
            run = tmp_path / f"{loss}-{size}"
            train = {
                "epochs": 1,
                "batch_size": size,
                "gradient_accumulation_steps": accumulate,
                "validate_every": None,
                "warmup": 0,
            }
            config = recipe(root, run, train, objective=[{"loss": loss}], data={"train": str(tmp_path / "data")})
            out = mmtune.train(config, quiet=True)
            assert out.steps == 1 and out.pairs == 24
            norms.append(series(run)[0]["grad_norm"])
        assert (norms[0] == pytest.approx(norms[1], rel=1e-4)) == equal


# --- validation ----------------------------------------------------------------------------------------------------------


def test_validation_before_the_first_step_and_every_two_steps(root, tmp_path):
    base = mmtune.evaluate("tiny:clip", corpora.packed(root, 12, 1))
    out = mmtune.train(recipe(root, tmp_path / "run", {"validate_every": 2, "validate_at_start": True}), quiet=True)
    rows = [r for r in series(tmp_path / "run") if "val metric" in r]
    assert [(r["step"], r["epoch"]) for r in rows] == [(0, 0), (2, 0), (3, 0), (4, 1), (6, 1)]  # once at step 6, an epoch's end
    trained = [base.metric("map", d) for d in ("image->text", "text->image")]
    assert rows[0]["val metric"] == pytest.approx(np.mean(trained), abs=1e-6)
    assert "step-0000000" not in [b["checkpoint"] for b in out.best] and len(out.best) == 3


def test_patience_counts_validations(root, tmp_path):
    train = {"epochs": 50, "lr": 1e-9, "patience": 2, "validate_every": 1}
    assert mmtune.train(recipe(root, tmp_path / "run", train), quiet=True).steps == 3


def test_validation_needs_data(root, tmp_path):
    for key, value in (("validate_every", 2), ("validate_at_start", True)):
        with pytest.raises(RecipeError, match=rf"train\.{key}: needs data\.val"):
            mmtune.train(recipe(root, tmp_path / "run", {key: value}, data={"train": corpora.packed(root)}), quiet=True)


# --- extension -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_an_extended_run_equals_one_that_was_planned_so(root, tmp_path, schedule, capsys):
    train = {"schedule": schedule, "decay": 2, "warmup": 2} if schedule == "wsd" else {"schedule": schedule}
    mmtune.train(recipe(root, tmp_path / "planned", {**train, "epochs": 4}), quiet=True)
    mmtune.train(recipe(root, tmp_path / "run", {**train, "epochs": 2.5}), quiet=True)  # 8 of 9 steps of three epochs
    capsys.readouterr()
    out = mmtune.train(recipe(root, tmp_path / "run", {**train, "epochs": 4}), resume=True)
    start = 6 if schedule == "wsd" else 8
    assert (
        f"extended from 8 to 12 steps; continues at step {start}, as a run planned with 12 steps would"
        in capsys.readouterr().err
    )
    assert out.steps == 12
    last = [torch.load(tmp_path / r / "checkpoints" / "last" / "state.pt", weights_only=True) for r in ("run", "planned")]
    for name, value in last[0]["model"].items():
        assert torch.equal(value, last[1]["model"][name])
    losses = [[r["loss"] for r in series(tmp_path / run) if "loss" in r] for run in ("run", "planned")]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_an_extension_that_differs_from_a_plan_says_so_and_a_run_is_not_shortened(root, tmp_path, capsys):
    run = tmp_path / "run"
    mmtune.train(recipe(root, run, {"epochs": 1}), quiet=True)
    assert mmtune.train(recipe(root, run, {"epochs": 2}), resume=True).steps == 6
    printed = capsys.readouterr().err
    assert (
        "1 of the steps before had other learning rates than in a run planned with 6 steps (train.schedule: cosine" in printed
    )
    with pytest.raises(TrainingError, match=r"another value of train\.epochs.*a run can be extended, not shortened"):
        mmtune.train(recipe(root, run, {"epochs": 1}), resume=True, quiet=True)
    mined = recipe(root, tmp_path / "mined", {"epochs": 1}, mining={"rounds": 1, "negatives": 2})
    mmtune.train(mined, quiet=True)
    mined["train"]["epochs"] = 2
    with pytest.raises(TrainingError, match=r"mining rounds are spread over the epochs.*model=.*artifact"):
        mmtune.train(mined, resume=True, quiet=True)


# --- towers --------------------------------------------------------------------------------------------------------------


def tower_weights(model, modality):
    return torch.cat([p.detach().flatten() for module in model.modules_of(modality) for p in module.parameters()])


def test_layers_unfreeze_from_the_last_to_the_first(root, tmp_path, monkeypatch):
    """Three steps an epoch and a layer every third of one: at step k the layers from the k-th last on change."""
    from mmtune.training.tuning.layers import layer_numbers

    changed, step = [], Trainer.step

    def watched(self, batch):
        layer, count = layer_numbers(self.model.towers["image"].modules)
        before = {i: [] for i in range(count + 2)}
        parameters = [p for module in self.model.towers["image"].modules for p in module.parameters()]
        for p in parameters:
            before[layer[id(p)]].append(p.detach().clone())
        outcome = step(self, batch)
        after = {i: [] for i in range(count + 2)}
        for p in parameters:
            assert p.requires_grad
            after[layer[id(p)]].append(p.detach())
        changed.append([i for i in before if any(not torch.equal(x, y) for x, y in zip(before[i], after[i], strict=True))])
        return outcome

    monkeypatch.setattr(Trainer, "step", watched)
    tune = {"image": {"how": "full", "unfreeze_every": 1 / 3}, "text": "full"}
    config = recipe(root, tmp_path / "run", {"warmup": 0, "validate_every": None}, tune=tune)
    mmtune.train(config, quiet=True)
    top = max(max(c) for c in changed)
    assert changed == [[i for i in range(top + 1) if i >= top - k] for k in range(6)]


def test_towers_have_their_own_rate_and_decay(root, tmp_path):
    start = mmtune.load("tiny:clip")
    tune = {"image": {"how": "full", "lr": 1e-12}, "text": {"how": "full", "weight_decay": 0.0}}
    mmtune.train(recipe(root, tmp_path / "run", {"epochs": 1, "weight_decay": 0.0}, tune=tune), quiet=True)
    slow = mmtune.load(tmp_path / "run" / "artifact")
    assert float((tower_weights(slow, "image") - tower_weights(start, "image")).abs().max()) < 1e-8
    tune["image"] = "frozen"  # a decay of the image tower, however small, would reach the gradients of the text tower
    for name, decay in (("none", 0.0), ("recipe", 0.5)):
        mmtune.train(recipe(root, tmp_path / name, {"epochs": 1, "weight_decay": decay}, tune=tune), quiet=True)
    none, other = (tower_weights(mmtune.load(tmp_path / name / "artifact"), "text") for name in ("none", "recipe"))
    assert torch.equal(none, other) and not torch.equal(none, tower_weights(start, "text")), "text has its own decay, 0"


def test_rates_reach_the_optimizer_and_the_rest_keeps_the_recipes(root):
    from mmtune.recipe.train_block import TrainConfig
    from mmtune.training.optimizer import parameter_groups
    from mmtune.training.tuning.tune import tune

    model = mmtune.load("tiny:clip")
    tuned = tune(model, {"image": {"how": "full", "lr": 1e-5, "layer_decay": 0.5}, "text": "full"}, ["image", "text"])
    groups = parameter_groups(model, torch.nn.Module(), TrainConfig(lr=1e-3), tuned.lr_shares, tuned.rates)
    image = {id(p) for module in model.modules_of("image") for p in module.parameters()}
    lrs = {id(p): g["base_lr"] for g in groups for p in g["params"]}
    assert max(v for i, v in lrs.items() if i in image) == pytest.approx(1e-5)
    assert min(v for i, v in lrs.items() if i in image) < 5e-6
    assert {v for i, v in lrs.items() if i not in image} == {1e-3}
    frozen = {"image": {"how": "frozen", "lr": 1e-5}, "text": "full"}
    with pytest.raises(RecipeError, match=r"tune\.image\.lr: is an option of how: full or head"):
        tune(mmtune.load("tiny:clip"), frozen, ["image", "text"])
