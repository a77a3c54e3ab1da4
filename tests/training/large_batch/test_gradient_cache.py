"""Recipes with a teacher, Matryoshka, cross-batch memory and gradient caching train, resume, and refuse mistakes."""

import shutil

import pytest
import torch

from mmtune.data.pack.pack import pack
from mmtune.errors import DataError, RecipeError
from mmtune.run import train
from mmtune.training.loop import Trainer
from tests.support.data_helpers import catalog


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    pack(catalog(folder / "src", n=24), folder / "train", group="sku")
    return str(folder / "train")


def recipe(data, directory, epochs=2.0, **more):
    return {
        "model": "tiny:clip",
        "data": {"train": data},
        "run": {"dir": str(directory)},
        "train": {"epochs": epochs, "batch_size": 8, "micro_batch_size": 3, "precision": "fp32"},
    } | more


EVERYTHING = {
    "teachers": {"big": {"model": "tiny:clip@7"}},
    "matryoshka": {"dims": [16], "weights": [0.5]},
    "memory": {"size": 10, "start": 1},
    "objective": [
        {"loss": "info_nce", "guide": "big", "guide_margin": 0.05},
        {"loss": "feature", "teacher": "big", "projection": True, "weight": 0.1},
        {"loss": "margin_mse", "teacher": "big"},
    ],
}


def test_everything_at_once_resumes_to_the_same_weights(data, tmp_path, monkeypatch):
    whole = train(recipe(data, tmp_path / "whole", **EVERYTHING), quiet=True)
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 4:  # after the first epoch's checkpoint: the memory has to come from there
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(data, tmp_path / "parts", **EVERYTHING), quiet=True)
    monkeypatch.undo()
    state = torch.load(tmp_path / "parts" / "checkpoints" / "last" / "state.pt", weights_only=True)["objective"]
    assert any("projections" in k for k in state) and "memory._extra_state" in state
    again = train(recipe(data, tmp_path / "parts", **EVERYTHING), resume=True, quiet=True)
    assert again["fingerprint"] == whole["fingerprint"]
    assert '"dim 16"' in (tmp_path / "whole" / "metrics.jsonl").read_text()
    without = train(recipe(data, tmp_path / "without", **{**EVERYTHING, "memory": None}), quiet=True)
    assert without["fingerprint"] != whole["fingerprint"]


@pytest.mark.parametrize(
    "more,says",
    [
        ({"objective": [{"loss": "mse"}]}, "score"),
        ({"objective": [{"loss": "kl", "teacher": "big"}]}, "objective[0].teacher: there is no teacher 'big'"),
        ({"matryoshka": {"dims": [999]}}, "matryoshka.dims: [999] must be between 1 and the model's dimension, 64"),
        ({"memory": {"size": 0}}, "memory.size"),
        ({"teachers": {"big": {"modle": "x"}}}, "teachers.big"),
    ],
)
def test_mistakes_are_refused_before_training(data, tmp_path, more, says):
    with pytest.raises((RecipeError, DataError)) as e:
        train(recipe(data, tmp_path / "run", **more), quiet=True)
    assert says in str(e.value) and "\n" not in str(e.value)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
