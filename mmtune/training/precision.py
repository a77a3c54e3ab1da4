"""The numeric precision of a training run: which one a recipe's `train.precision` means here, and the autocast that applies it.

The precision belongs to one run: nothing about it is kept in the process, so runs of different precision may follow each other
(a notebook, a sweep).
"""

import os
from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]

BF16_SWITCH = "MMTUNE_BF16"
"""Environment variable: with the value 0, `precision: auto` means fp32 on every machine. An explicit `precision: bf16` stays."""


def resolve_precision(requested: Literal["auto", "fp32", "bf16"]) -> Precision:
    """What `train.precision` means on this machine.

    auto: bf16 where the hardware multiplies it (AVX-512 bf16 on a CPU, Ampere and later on a GPU) unless `MMTUNE_BF16=0`,
    else fp32.
    """
    if requested != "auto":
        return requested
    if os.environ.get(BF16_SWITCH, "1") == "0":
        return "fp32"
    supported = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if supported else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """A context in which matrix products on `device` run in `precision`; weights and the loss stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
