"""Cross-encoders under torchrun: two processes train the weights of one; both are killed and resumed to the same weights."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.support import corpora
from tests.support.dist_runs import TORCHRUN, done, end, launch, lines, near, wait_for_step, weights

pytestmark = pytest.mark.dist
SMALL = {"layers": 1, "width": 32, "attention_heads": 2, "negatives": 5, "max_tokens": 16, "depth": 8, "lr": 1e-3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("dist-cross")


def recipe(root: Path, name: str, **changes) -> Path:
    base = {
        "model": "tiny:clip",
        "cross_encoder": SMALL,
        "data": {
            "train": corpora.packed(root, 24, 0, ("image", "text")),
            "val": corpora.packed(root, 12, 1, ("image", "text")),
        },
        "pairs": [["image", "text"]],
        "train": {"epochs": 2, "batch_size": 7, "lr": 1e-4, "precision": "fp32", "metric": "mrr"},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(base))
    return path


SGD = {"optimizer": {"name": "torch.optim:SGD"}, "lr": 0.01}
"""Adam would turn the rounding of a gradient that is 0, that of a bias before a softmax, into a step of the learning rate."""


def same_run(one: Path, two: Path) -> None:
    """Losses, scores of validation and weights of two runs are equal up to rounding."""
    a, b = lines(one), lines(two)
    assert [(r["step"], "loss" in r) for r in a] == [(r["step"], "loss" in r) for r in b] and len(a) > 8
    for x, y in zip(a, b, strict=True):
        for key in set(x) - {"pairs_per_second", "wait"}:
            assert y[key] == pytest.approx(x[key], rel=2e-4, abs=2e-5), (x["step"], key)
    near(one, two, 1e-4)


@pytest.mark.parametrize("loss", ["softmax", "binary"])
def test_two_processes_train_the_weights_of_one(root, tmp_path, loss):
    path = recipe(root, loss, cross_encoder={"dropout": 0.0, "loss": loss, "lr": 0.02}, train=SGD)
    one = done(launch([sys.executable], path, tmp_path / "one"))
    two = done(launch(TORCHRUN, path, tmp_path / "two"))
    same_run(tmp_path / "one", tmp_path / "two")
    assert two["steps"] == one["steps"] == 8
    assert two["metrics"]["reranked_directions"].keys() == one["metrics"]["reranked_directions"].keys()


def test_both_are_killed_and_resume_to_the_same_weights(root, tmp_path):
    """With dropout in the joint layers, of which every process draws its own."""
    path = recipe(root, "killed", train={"epochs": 6, "checkpoint_every": 2})
    done(launch(TORCHRUN, path, tmp_path / "whole"))
    process = launch(TORCHRUN, path, tmp_path / "run")
    wait_for_step(tmp_path / "run", 5)
    end(process)
    assert not (tmp_path / "run" / "artifact").exists()
    done(launch(TORCHRUN, path, tmp_path / "run", "--resume"))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert [r["step"] for r in lines(tmp_path / "run")] == [r["step"] for r in lines(tmp_path / "whole")]
