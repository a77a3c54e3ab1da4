"""transformers' modules with a checkpoint's weights, and the attention that they train with."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.errors import ModelError


def build(cls: Untyped, directory: Path, config: Untyped, weights: bool) -> nn.Module:
    """A module of transformers' class `cls` in eval mode, with the directory's weights or uninitialised.

    Float32 whatever the file holds: fingerprint and vectors must not depend on a library's default dtype. ModelError where the
    checkpoint lacks weights of the module.
    """
    if not weights:
        module: nn.Module = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
        return module.float().eval()
    module, info = cls.from_pretrained(directory, dtype=torch.float32, output_loading_info=True, trust_remote_code=False)
    missing = sorted(k for k in info["missing_keys"] if "position_ids" not in k)
    if missing:
        raise ModelError(f"hf:{directory}: {len(missing)} weights are missing from the checkpoint, first {missing[0]!r}")
    return module.eval()


def attention_switch(module: Untyped) -> Callable[[str, bool], None]:
    """`Backbone.select_attention` of a transformers module.

    On a CPU in bf16 the backward pass of the fused attention takes as long as all matrix products together (torch 2.14: 350 of
    800 ms a step of 64 images); the eager one does not (500 ms).
    """
    default = module.config._attn_implementation

    def select_attention(device: str, low_precision: bool) -> None:
        module.set_attn_implementation("eager" if device == "cpu" and low_precision else default)

    return select_attention
