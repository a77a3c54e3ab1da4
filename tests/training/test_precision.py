"""Precision belongs to one run: runs of different precision in one process equal runs in separate processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import mmtune
from mmtune.training.loop import Trainer
from mmtune.training.precision import resolve_precision
from tests.support import corpora

pytestmark = pytest.mark.precision

REPOSITORY = Path(__file__).parents[2]


def recipe(data: str, run: Path, precision: str) -> dict:
    return {
        "model": "tiny:clip",
        "data": {"train": data, "workers": 1},
        "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "warmup": 0, "precision": precision},
        "run": {"dir": str(run)},
    }


def weights(run: Path) -> bytes:
    return (run / "artifact" / "weights.safetensors").read_bytes()


def test_runs_of_different_precision_in_one_process_equal_runs_in_separate_processes(tmp_path):
    data = corpora.packed(tmp_path)
    together = {}
    for number, precision in enumerate(["fp32", "bf16", "fp32"]):
        run = tmp_path / f"together-{number}"
        mmtune.train(recipe(data, run, precision), quiet=True)
        together.setdefault(precision, []).append(weights(run))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(REPOSITORY)}
    for precision, found in together.items():
        run = tmp_path / f"alone-{precision}"
        path = tmp_path / f"{precision}.yaml"
        path.write_text(yaml.safe_dump(recipe(data, run, precision)))
        subprocess.run([sys.executable, "-m", "mmtune", "train", str(path), "--quiet"], check=True, env=environment)
        assert all(w == weights(run) for w in found)
    assert together["fp32"][0] != together["bf16"][0], "bf16 changes nothing: it was not used"


def test_a_run_in_the_machines_own_precision_learns_and_resumes_to_the_same_weights(tmp_path, monkeypatch):
    data = corpora.packed(tmp_path)

    def own(run: str) -> dict:
        changes = {"epochs": 6, "checkpoint_every": 1}
        base = recipe(data, tmp_path / run, "auto")
        return {**base, "train": {**base["train"], **changes}}

    before = mmtune.evaluate(mmtune.load("tiny:clip"), data).metric("map", "text->image")
    whole = mmtune.train(own("whole"), quiet=True)
    assert mmtune.evaluate(whole["artifact"], data, allow_trained=True).metric("map", "text->image") > before + 0.2
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 7:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(own("parts"), quiet=True)
    monkeypatch.undo()
    mmtune.train(own("parts"), resume=True, quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert environment["precision"] == resolve_precision("auto")


@pytest.mark.parametrize("switch, expected", [("0", "fp32"), ("1", "bf16"), (None, "bf16")])
def test_auto_is_bf16_where_the_hardware_has_it_and_the_environment_may_switch_that_off(monkeypatch, switch, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv("MMTUNE_BF16", raising=False)
    if switch is not None:
        monkeypatch.setenv("MMTUNE_BF16", switch)
    assert resolve_precision("auto") == expected
    assert resolve_precision("bf16") == "bf16" and resolve_precision("fp32") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert resolve_precision("auto") == "fp32"
