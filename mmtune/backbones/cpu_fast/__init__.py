"""Faster CPU implementations of layers of transformers, open_clip and timm. Embeddings and gradients stay the same up to rounding.

The rest of mmtune calls only `apply`, from `backbones.load` and `backbones.rebuild`, so this package could be removed as a
whole. `train.cpu_kernels: off` in the recipe, or `mmtune.load(..., cpu_kernels="off")`, disables it.

Layers to replace are recognised by their structure (attributes and submodules), not by the name of their class. A method is
replaced only if its output on random inputs stays the same. The names of the weights do not change.
"""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from torch import nn

from mmtune.backbones.cpu_fast.depthwise import replace_depthwise
from mmtune.backbones.cpu_fast.first_token_block import keep_first_token
from mmtune.backbones.cpu_fast.kernels import replace_layers
from mmtune.backbones.cpu_fast.self_attention import replace_self_attention
from mmtune.backbones.cpu_fast.window_attention import replace_audio_encoder, replace_window_attention

CpuKernels: TypeAlias = Literal["auto", "off"]
""""auto" replaces layers by the implementations of this package; "off" leaves all modules as they are."""


def apply(module: nn.Module, first_token_encoders: Iterable[nn.Module] = ()) -> None:
    """Replace every layer of `module` for which this package has a faster implementation, in place.

    first_token_encoders: encoders in `module` of whose last block only the first token's output is used
    """
    for encoder in first_token_encoders:
        keep_first_token(encoder)
    replace_layers(module)
    for layer in module.modules():
        replace_self_attention(layer)
        replace_window_attention(layer)
        replace_audio_encoder(layer)
        replace_depthwise(layer)
