"""Faster CPU implementations of layers in transformers' and open_clip's towers: the same vectors and gradients up to rounding.

This package can be removed as a whole: the rest of mmtune calls `apply` alone, from `backbones.load` and `backbones.rebuild`, and
not at all where the recipe says `train.cpu_kernels: off` (or `mmtune.load(..., cpu_kernels="off")`). A module is changed by what
it consists of, not by its class's name, and only where its output on random inputs is upstream's; weights keep their names.
"""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from torch import nn

from mmtune.backbones.cpu_fast.first_token_block import keep_first_token
from mmtune.backbones.cpu_fast.kernels import replace_layers
from mmtune.backbones.cpu_fast.self_attention import replace_self_attention
from mmtune.backbones.cpu_fast.window_attention import replace_audio_encoder, replace_window_attention

CpuKernels: TypeAlias = Literal["auto", "off"]
"""auto: use the implementations of this package; off: no upstream module is altered."""


def apply(module: nn.Module, first_token_encoders: Iterable[nn.Module] = ()) -> None:
    """Replace, in place, every layer of `module` that this package has a faster implementation of.

    first_token_encoders: encoders within `module` of whose last block only the first token's output is used.
    """
    for encoder in first_token_encoders:
        keep_first_token(encoder)
    replace_layers(module)
    for layer in module.modules():
        replace_self_attention(layer)
        replace_window_attention(layer)
        replace_audio_encoder(layer)
