"""A loss from outside the package: by name after `register`, by `package.module:function`, and refused when it is none."""

import json

import pytest
import torch

import mmtune
from mmtune.errors import RecipeError, TrainingError
from mmtune.losses import TABLE, ContrastiveBlock, DistillationBlock, ScoredPairs, contrastive_loss, register
from mmtune.training.build_objective import build_objective
from tests.support import corpora
from tests.support.losses_helpers import ROWS, make_batch, unit

OUTSIDE = """
import torch
from mmtune.losses import ContrastiveBlock, contrastive_loss

@contrastive_loss
def hinge(block: ContrastiveBlock, *, margin: float = 0.2) -> torch.Tensor:
    hardest = block.similarity.masked_fill(~block.negatives, -1).amax(1)
    weakest = block.similarity.masked_fill(~block.positives, 1).amin(1)
    return torch.relu(margin + hardest - weakest)
"""


def value(loss, **options):
    batch = make_batch(ROWS)
    z = {m: unit(len(batch.inputs[m]["x"]), 6, s) for m, s in (("a", 1), ("b", 2))}
    objective = build_objective([{"loss": loss, **options}], [("a", "b")])
    return objective(z, batch, lambda a, b: (torch.tensor(5.0), None))[0]


@pytest.fixture
def restored_table():
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


@pytest.mark.parametrize("tile", ["never", "always"])
def test_a_file_in_the_working_directory_trains_through_a_recipe(tmp_path, monkeypatch, tile):
    (tmp_path / "outside_hinge.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(tmp_path)},
        "objective": [{"loss": "outside_hinge:hinge", "margin": 0.3, "tile": tile}],
        "train": {"epochs": 4, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
        "run": {"dir": str(tmp_path / "run")},
    }
    out = mmtune.train(recipe, quiet=True)
    assert out["steps"] == 12
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [x["outside_hinge:hinge"] for x in lines if "loss" in x]
    assert losses[-1] < losses[0]
    recipe["objective"][0] |= {"margn": 1}
    with pytest.raises(
        RecipeError, match=r"objective\[0\]\.margn: outside_hinge:hinge has no such option; did you mean 'margin'"
    ):
        mmtune.train(recipe | {"run": {"dir": str(tmp_path / "other")}}, quiet=True)


def test_a_registered_name_is_a_loss_like_the_others(restored_table):
    @contrastive_loss
    def flat(block: ContrastiveBlock, *, height: float = 1.0) -> torch.Tensor:
        return torch.full((len(block.similarity),), height)

    register("flat", flat)
    assert float(value("flat", height=3.0)) == 3.0
    with pytest.raises(RecipeError, match="no loss 'flta'; did you mean 'flat'"):
        value("flta")
    with pytest.raises(RecipeError, match="is not of the form package.module:Attribute"):
        register("bad", "no colon")


WRONG = [
    (lambda block: None, r"loss wrong \(objective\[0\]\) returned NoneType; it must return a float tensor \[6\]"),
    (lambda block: block.similarity.mean(), r"returned torch.float32 \[\]; it must return a float tensor \[6\]"),
    (lambda block: block.similarity, r"returned torch.float32 \[6, 7\]; it must return a float tensor \[6\]"),
    (lambda block: block.positives.sum(1), r"returned torch.int64 \[6\]; it must return a float tensor \[6\]"),
    (lambda block: (block.similarity.sum(1) - 99).sqrt(), r"returned nan although all similarities are finite"),
]


@pytest.mark.parametrize("function, message", WRONG)
@pytest.mark.parametrize("tile", ["never", "always"])
def test_a_loss_that_returns_something_else_is_refused_at_the_first_step(restored_table, function, message, tile):
    register("wrong", contrastive_loss(function))
    with pytest.raises(TrainingError, match=message):
        value("wrong", tile=tile)


def test_what_an_author_needs_is_importable_from_the_room():
    assert {ContrastiveBlock.__name__, ScoredPairs.__name__, DistillationBlock.__name__} <= set(mmtune.losses.__all__)
