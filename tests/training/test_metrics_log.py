"""metrics.jsonl of a run that was killed and resumed has the lines of an uninterrupted one."""

import json

import pytest

import mmtune
from mmtune.training.loop import Trainer
from tests.support import corpora


def lines(run):
    return [
        (r["step"], r["epoch"], "val metric" in r) for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ]


def test_killed_between_a_validation_and_the_next_checkpoint(tmp_path, monkeypatch):
    def recipe(run):
        return {
            "model": "tiny:clip",
            "data": {"train": corpora.packed(tmp_path), "val": corpora.packed(tmp_path, 12, 1)},
            "train": {"epochs": 2, "batch_size": 12, "precision": "fp32", "checkpoint_every": 1},
            "run": {"dir": str(tmp_path / run)},
        }

    mmtune.train(recipe("whole"), quiet=True)
    save = Trainer._save

    def killed(self, *name):
        if self.state.validated_step == self.state.step:  # the checkpoint of step 2 before its validation is there already
            raise KeyboardInterrupt
        save(self, *name)

    monkeypatch.setattr(Trainer, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(recipe("run"), quiet=True)
    monkeypatch.setattr(Trainer, "_save", save)
    mmtune.train(recipe("run"), resume=True, quiet=True)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert [step for step, _, val in lines(tmp_path / "run") if val] == [2, 4]
