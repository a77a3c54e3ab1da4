"""Faster self-attention for transformers' towers on a CPU.

Queries, keys and values are computed in one matrix product, and the attention by `kernels.attend`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmtune.backbones.cpu_fast.kernels import attend, project
from mmtune.backbones.cpu_fast.replace_method import random_tensor, replace_by_inputs

MAX_TOKENS = 128  # for longer sequences, torch's fused attention is as fast and needs less memory
PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


class _Parts(NamedTuple):
    """The parts of a self-attention module.

    projections: the layers for queries, keys and values, each [C -> H * D]
    heads: number of attention heads H
    scale: factor of the attention scores
    dropout: dropout probability of the attention
    out: output projection; None if it is outside the module
    """

    projections: tuple[nn.Module, nn.Module, nn.Module]
    heads: int
    scale: float
    dropout: float
    out: nn.Module | None


def _parts(module: nn.Module) -> _Parts | None:
    """Return the parts of a self-attention module in one of two layouts of transformers, or None for any other module.

    In CLIP and SigLIP, the module has `num_heads`, `scale`, the number `dropout`, and `out_proj`. In BERT and in CLAP's text
    tower, it has `num_attention_heads`, `scaling` and the layer `dropout`; the output projection belongs to another module.
    """
    names = next((n for n in PROJECTIONS if all(hasattr(module, p) for p in n)), None)
    if names is None:
        return None
    out, dropout = getattr(module, "out_proj", None), getattr(module, "dropout", None)
    heads, scale = getattr(module, "num_heads", None), getattr(module, "scale", None)
    if out is None:
        heads, scale = getattr(module, "num_attention_heads", None), getattr(module, "scaling", None)
        dropout = dropout.p if isinstance(dropout, nn.Dropout) else None
    if not isinstance(heads, int) or not isinstance(scale, float) or not isinstance(dropout, float | int):
        return None
    return _Parts((getattr(module, names[0]), getattr(module, names[1]), getattr(module, names[2])), heads, scale, dropout, out)


def replace_self_attention(module: nn.Module) -> None:
    """Replace `forward` of a self-attention module whose three projections are linear layers of equal shape.

    Any other module is left unchanged.
    """
    parts = _parts(module)
    if parts is None or getattr(module, "is_cross_attention", False):
        return
    linear = [p for p in parts.projections if isinstance(p, nn.Linear)]
    if len(linear) < 3 or len({p.weight.shape for p in linear}) > 1:
        return
    width = linear[0].in_features
    mask = torch.zeros(2, 1, 3, 3)
    mask[1, ..., 2] = torch.finfo(mask.dtype).min
    replace_by_inputs(module, "forward", _forward, [(random_tensor(2, 3, width),), (random_tensor(2, 3, width), mask)])


def use_upstream(x: Tensor, tokens: int) -> bool:
    """Whether to run the original implementation: on an accelerator, under torch.compile, and for long sequences.

    x: the input
    tokens: length of the sequence
    """
    return x.device.type != "cpu" or tokens > MAX_TOKENS or torch.compiler.is_compiling()


def _forward(
    module: nn.Module, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: object, **kwargs: object
) -> tuple[Tensor, Tensor | None]:
    """Replacement of `forward`: hidden states [B, T, C] -> ([B, T, C], None).

    attention_mask: [B, 1, 1 or T, T], boolean (True: attend) or float (added to the attention scores)

    The original `forward` runs instead if attention weights, a cache or cross-attention are requested, or if neither a mask nor
    `is_causal` defines which tokens attend to which.
    """
    T = hidden_states.shape[1]
    causal = kwargs.get("is_causal", getattr(module, "is_causal", None))
    no_mask_rule = attention_mask is None and causal is None
    extra = any(x is not None for x in args) or any(
        kwargs.get(k) is not None and kwargs.get(k) is not False
        for k in ("cache", "past_key_values", "output_attentions", "encoder_hidden_states", "position_embeddings")
    )
    parts = None if use_upstream(hidden_states, T) or no_mask_rule or extra else _parts(module)
    if parts is None:
        return type(module).forward(module, hidden_states, attention_mask, *args, **kwargs)
    qkv = project(hidden_states, parts.projections, parts.heads)
    bias = _bias(attention_mask, T, bool(causal), qkv)
    context = attend(qkv, bias, parts.scale, parts.dropout if module.training else 0.0)
    return (context if parts.out is None else parts.out(context)), None


def _bias(mask: Tensor | None, T: int, causal: bool, like: Tensor) -> Tensor | None:
    """Return the mask as a tensor to add to the attention scores, or None if every token attends to every token.

    mask: as in `_forward`, or None
    causal: without a mask, whether to use a causal one
    like: a tensor of the dtype of the result
    """
    if mask is None and not causal:
        return None
    if mask is None:
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, torch.finfo(like.dtype).min)
