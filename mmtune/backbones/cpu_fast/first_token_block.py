"""The last block of an encoder of which only the first token's output is used (CLIP's image tower, CLAP's text tower).

The queries, the output projection and the MLP of that block are computed for the first token alone: the same vectors and
gradients for about ten twelfths of a block's work less.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.cpu_fast.replace_method import replace_method

Projections = tuple[nn.Module, nn.Module, nn.Module]


def keep_first_token(encoder: nn.Module) -> None:
    """Make the last block of a `CLIPVisionModel` or a `ClapTextModel` return its first token alone, [B, 1, C].

    Left unchanged where the pooled output on random inputs, through that block only, differs from upstream's.
    """
    tower: Untyped = encoder
    random = torch.Generator().manual_seed(0)
    if hasattr(tower.encoder, "layers"):
        config = tower.config
        pixels = torch.rand(2, config.num_channels, config.image_size, config.image_size, generator=random)
        _replace_last_block(tower.encoder, "layers", _clip_block, lambda: tower(pixels).pooler_output)
    else:
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
        tokens = torch.randint(4, max(5, tower.config.vocab_size), mask.shape, generator=random)
        _replace_last_block(tower.encoder, "layer", _bert_block, lambda: tower(tokens, mask).pooler_output)


def _replace_last_block(encoder: Untyped, name: str, forward: Callable[..., Tensor], result: Callable[[], Tensor]) -> None:
    blocks = getattr(encoder, name)
    setattr(encoder, name, blocks[-1:])
    try:
        replace_method(blocks[-1], "forward", forward, lambda: [result()])
    finally:
        setattr(encoder, name, blocks)


def _first_token_attention(
    projections: Projections, x_BTC: Tensor, head_dim: int, scale: float, dropout: float, mask: Tensor | None
) -> Tensor:
    """The first token's attention to all tokens, [B, 1, C]; the mask [B, 1, 1 or T, T] is that of the whole block."""
    q, k, v = (
        f(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for f, x in zip(projections, (x_BTC[:, :1], x_BTC, x_BTC), strict=True)
    )
    if mask is not None:
        mask = mask[:, :, :1]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale).transpose(1, 2).flatten(2)


def _clip_block(block: Untyped, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    """`CLIPEncoderLayer.forward` [B, T, C] -> [B, 1, C]: keys and values of all tokens, everything else of the first."""
    at = block.self_attn
    projections, dropout = (at.q_proj, at.k_proj, at.v_proj), at.dropout if block.training else 0.0
    context = _first_token_attention(projections, block.layer_norm1(hidden_states), at.head_dim, at.scale, dropout, None)
    x_B1C = hidden_states[:, :1] + at.out_proj(context)
    return x_B1C + block.mlp(block.layer_norm2(x_B1C))


def _bert_block(
    block: Untyped, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: object, **__: object
) -> Tensor:
    """`ClapTextLayer.forward` [B, T, C] -> [B, 1, C]."""
    at = block.attention.self
    projections, dropout = (at.query, at.key, at.value), at.dropout.p if block.training else 0.0
    context = _first_token_attention(projections, hidden_states, at.attention_head_size, at.scaling, dropout, attention_mask)
    return block.feed_forward_chunk(block.attention.output(context, hidden_states[:, :1]))
