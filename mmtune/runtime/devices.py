"""The device on which models run, and what differs between devices: random generators and the widest floating-point type.

A CUDA GPU is used if there is one, else Apple's GPU (MPS), else the CPU. MPS has no float64.
"""

import os

import torch
from torch import Tensor

MPS_SWITCH = "MMTUNE_MPS"
"""Environment variable. If it is 0, Apple's GPU is not used."""


def has_mps() -> bool:
    """Whether Apple's GPU is used: it is available, MMTUNE_MPS is not 0, and this is the only process (gloo cannot send its tensors)."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return alone and os.environ.get(MPS_SWITCH, "1") != "0" and torch.backends.mps.is_available()


def default_device() -> torch.device:
    """The current CUDA GPU, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if has_mps() else "cpu")


def local_device() -> torch.device:
    """The CUDA GPU of this process, chosen by the environment variable LOCAL_RANK; else as `default_device`."""
    if not torch.cuda.is_available():
        return default_device()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The type in which long sums are accumulated: float64, and float32 on a device that has no float64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def get_rng_state(device: torch.device) -> Tensor | None:
    """The state of the random generator of an accelerator, a byte tensor on the CPU; None for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def set_rng_state(device: torch.device, state: Tensor) -> None:
    """Restore a state that `get_rng_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
