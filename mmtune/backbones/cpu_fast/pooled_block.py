"""CLIP's picture tower and CLAP's text tower are asked for one token of their last block, as transformers pools the first. That
block's queries, projection and MLP need no other token: the same vectors and gradients for about ten twelfths of a block's work
less.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtune.backbones.cpu_fast.replace_method import replace_method


def pool_last_block(tower: Any) -> None:
    """Make the last block of a `CLIPVisionModel` or a `ClapTextModel` return its first token alone, [B, 1, W]; left as it is
    where upstream's own answer on noise, through that block only, differs (a later version of it)."""
    random = torch.Generator().manual_seed(0)
    if hasattr(tower.encoder, "layers"):
        config = tower.config
        pictures = torch.rand(2, config.num_channels, config.image_size, config.image_size, generator=random)
        _cut(tower.encoder, "layers", _first_patch, lambda: tower(pictures).pooler_output)
    else:
        seen = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
        tokens = torch.randint(4, max(5, tower.config.vocab_size), seen.shape, generator=random)
        _cut(tower.encoder, "layer", _first_word, lambda: tower(tokens, seen).pooler_output)


def _cut(encoder: Any, name: str, forward: Callable[..., Tensor], answer: Callable[[], Tensor]) -> None:
    blocks = getattr(encoder, name)
    setattr(encoder, name, blocks[-1:])
    try:
        replace_method(blocks[-1], "forward", forward, lambda: [answer()])
    finally:
        setattr(encoder, name, blocks)


def _attended(block: Any, layers: tuple[Any, Any, Any], x_BTW: Tensor, size: int, scale: float, p: float, mask: Any) -> Tensor:
    """The first token's attention to all, [B, 1, W]; heads of `size` numbers; the mask [B, 1, 1 or T, T] of the whole block."""
    q, k, v = (
        f(x).unflatten(-1, (-1, size)).transpose(1, 2) for f, x in zip(layers, (x_BTW[:, :1], x_BTW, x_BTW), strict=True)
    )
    if mask is not None:
        mask = mask[:, :, :1]
    seen = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p if block.training else 0.0, scale=scale)
    return seen.transpose(1, 2).flatten(2)


def _first_patch(block: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """`CLIPEncoderLayer.forward` [B, T, W] -> [B, 1, W]: keys and values of all tokens, everything else of the first."""
    at = block.self_attn
    layers = (at.q_proj, at.k_proj, at.v_proj)
    seen = _attended(block, layers, block.layer_norm1(hidden_states), at.head_dim, at.scale, at.dropout, None)
    x_B1W = hidden_states[:, :1] + at.out_proj(seen)
    return x_B1W + block.mlp(block.layer_norm2(x_B1W))


def _first_word(block: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """`ClapTextLayer.forward` [B, T, W] -> [B, 1, W]."""
    at = block.attention.self
    layers, p = (at.query, at.key, at.value), at.dropout.p
    seen = _attended(block, layers, hidden_states, at.attention_head_size, at.scaling, p, attention_mask)
    return block.feed_forward_chunk(block.attention.output(seen, hidden_states[:, :1]))
