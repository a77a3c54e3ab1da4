"""The numeric precision of a training run: resolve the recipe's `train.precision` on this machine, and apply it with autocast.

The precision is not stored in any global state. So runs with different precision can follow each other in one process, for
example in a notebook or a sweep.
"""

import os
from contextlib import AbstractContextManager
from typing import Literal

import torch

from mmtune.errors import RecipeError
from mmtune.runtime.devices import default_device

Precision = Literal["fp32", "bf16"]

BF16_SWITCH = "MMTUNE_BF16"
"""Environment variable. If it is 0, `precision: auto` means fp32 on every machine; `precision: bf16` is not affected."""


def resolve_precision(requested: Literal["auto", "fp32", "bf16"]) -> Precision:
    """Resolve `train.precision` on this machine.

    `auto` means bf16 if the hardware supports bf16 matrix products (CPUs with AVX-512 bf16, GPUs from Ampere on) and
    MMTUNE_BF16 is not 0; otherwise it means fp32. On Apple's GPU (MPS) it means fp32; bf16 is possible from macOS 14 on, and raises
    RecipeError before. float16 is offered nowhere, because training in it needs loss scaling.
    """
    on_mps = default_device().type == "mps"
    if requested == "bf16" and on_mps and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise RecipeError("train.precision: bf16 on Apple's GPU needs macOS 14 or later; use fp32")
    if requested != "auto":
        return requested
    if on_mps:
        return "fp32"
    if os.environ.get(BF16_SWITCH, "1") == "0":
        return "fp32"
    supported = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if supported else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Context manager in which matrix products on `device` are computed in `precision`. Weights and loss stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
