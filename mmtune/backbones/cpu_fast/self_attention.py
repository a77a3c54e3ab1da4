"""Self-attention of transformers' towers on a CPU: one matrix product for queries, keys and values, and `kernels.attend`."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.cpu_fast.kernels import attend, project
from mmtune.backbones.cpu_fast.replace_method import random_tensor, replace_by_inputs

MAX_TOKENS = 128  # with more, torch's attention, which does not store the softmax, is as fast
PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


class _Parts(NamedTuple):
    """What the attention is made of: projections [C -> H * D], number of heads, scale, dropout, output projection."""

    projections: tuple[nn.Module, nn.Module, nn.Module]
    heads: int
    scale: float
    dropout: float
    out: nn.Module | None


def _parts(module: Untyped) -> _Parts | None:
    """The parts of a self-attention in one of transformers' two layouts, None for any other module.

    CLIP's and SigLIP's have `num_heads`, `scale`, a number `dropout` and `out_proj`; BERT's and CLAP's text towers have
    `num_attention_heads`, `scaling` and a layer `dropout`, and their output projection lies elsewhere.
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
    """Replace `forward` of a self-attention whose three projections are linear layers of equal shape."""
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
    """Whether upstream's own implementation runs: on an accelerator, under torch.compile, for long sequences."""
    return x.device.type != "cpu" or tokens > MAX_TOKENS or torch.compiler.is_compiling()


def _forward(
    module: nn.Module, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Untyped, **kwargs: Untyped
) -> tuple[Tensor, Tensor | None]:
    """[B, T, C] -> ([B, T, C], None); the mask [B, 1, 1 or T, T] is boolean (True: attend) or added to the scores.

    Upstream's own `forward` runs where the attention weights, a cache or cross-attention are asked for, and where neither a mask
    nor `is_causal` says which tokens attend to which.
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
    """The mask as numbers that are added to the scores."""
    if mask is None and not causal:
        return None
    if mask is None:
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, torch.finfo(like.dtype).min)
