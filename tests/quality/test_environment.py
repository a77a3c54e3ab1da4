"""`mmtune doctor --env` says what is installed and what is missing, with the command."""

import importlib.metadata
import json

import pytest
import torch

from mmtune.cli import main
from mmtune.quality import environment


def test_what_is_installed_and_what_is_missing(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "bm25s" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = environment.inspect_environment()
    assert found.packages["torch"] == torch.__version__.partition("+")[0] or found.packages["torch"] == torch.__version__
    assert [r.partition(">")[0] for r in found.features["lora"]["missing"]] == ["peft"]
    assert found.features["lora"]["install"] == 'pip install "mmtune[lora]"'
    assert found.features["mining"]["missing"] == ["bm25s>=0.2.14"]  # installed, but too old
    assert 'pip install "mmtune[lora]"' in str(found) and found.device["device"]


def test_every_extra_that_users_install_is_described():
    declared = set(importlib.metadata.metadata("mmtune").get_all("Provides-Extra"))
    assert declared - set(environment.FEATURES) <= {"gpu", "test", "bench", "browser", "notebook", "dev", "docs", "release"} | {
        e for e in declared if e.startswith("doc")
    }


def test_a_gpu_that_torch_does_not_use_is_a_problem(monkeypatch, capsys):
    monkeypatch.setattr(environment, "_has_nvidia_device", lambda: True)
    monkeypatch.setattr("mmtune.runtime.devices.default_device", lambda: "cpu")
    assert main(["doctor", "--env", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert any("NVIDIA GPU that torch does not use" in p for p in document["problems"])


def test_doctor_needs_data_or_env(capsys):
    assert main(["doctor"]) == 2 and "--env" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_gpu_is_really_used():
    found = environment.inspect_environment()
    assert found.device["device"].startswith("cuda") and found.device["used"].startswith("yes") and not found.problems
