"""Which device is chosen, and what follows from it. Apple's GPU is not in this machine: the choice is tested, not the kernels."""

import pytest
import torch

from mmtune.errors import RecipeError
from mmtune.runtime import devices
from mmtune.training.precision import resolve_precision


@pytest.fixture
def machine(monkeypatch):
    def install(cuda: bool, mps: bool, macos: int = 15) -> None:
        for name in ("WORLD_SIZE", "MMTUNE_MPS", "MMTUNE_BF16"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major)

    return install


def test_cuda_before_mps_before_cpu(machine, monkeypatch):
    for cuda, mps, device in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        machine(cuda, mps)
        assert devices.default_device().type == devices.local_device().type == device
    machine(True, False)
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert devices.local_device() == torch.device("cuda", 2)


def test_mps_is_left_alone_by_several_processes_and_by_the_switch(machine, monkeypatch):
    machine(False, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert devices.local_device().type == "cpu"
    machine(False, True)
    monkeypatch.setenv("MMTUNE_MPS", "0")
    assert devices.default_device().type == "cpu"


def test_precision_on_mps_is_float32_unless_bf16_is_asked_for_on_macos_14(machine):
    machine(False, True)
    assert resolve_precision("auto") == "fp32" and resolve_precision("bf16") == "bf16"
    machine(False, True, macos=13)
    assert resolve_precision("auto") == resolve_precision("fp32") == "fp32"
    with pytest.raises(RecipeError, match=r"train\.precision: bf16 on Apple's GPU needs macOS 14"):
        resolve_precision("bf16")


def test_sums_on_mps_are_float32_and_random_states_are_those_of_the_device(monkeypatch):
    assert devices.accumulation_dtype(torch.device("mps")) is torch.float32
    assert devices.accumulation_dtype(torch.device("cuda")) is devices.accumulation_dtype(torch.device("cpu")) is torch.float64
    assert devices.get_rng_state(torch.device("cpu")) is None
    kept = {}
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.arange(3, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: kept.update(state=state))
    state = devices.get_rng_state(torch.device("mps"))
    devices.set_rng_state(torch.device("mps"), state)
    assert torch.equal(kept["state"], state)
