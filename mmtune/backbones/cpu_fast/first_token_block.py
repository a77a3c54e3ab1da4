"""Speed up the last block of encoders of which only the first token's output is used (CLIP's image tower, CLAP's text tower).

In that block the queries, the output projection and the MLP are computed for the first token only. This saves about ten
twelfths of the block's computation. Embeddings and gradients stay the same.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.cpu_fast.replace_method import replace_method

if TYPE_CHECKING:
    from transformers.models.clap.modeling_clap import ClapTextLayer
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

Projections = tuple[nn.Module, nn.Module, nn.Module]


def keep_first_token(encoder: nn.Module) -> None:
    """Make the last block of a `CLIPVisionModel` or a `ClapTextModel` return only its first token, [B, 1, C], in place.

    To check the change, the encoder is run on random inputs with that block as its only block. If the pooled output differs
    from the one before the change, the block is left unchanged.
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


def _replace_last_block(encoder: nn.Module, name: str, forward: Callable[..., Tensor], result: Callable[[], Tensor]) -> None:
    """Replace `forward` of the last block.

    encoder: the module that has the blocks
    name: its attribute with the list of blocks
    result: runs the encoder on random inputs; called while the last block is the only one
    """
    blocks: nn.ModuleList = getattr(encoder, name)
    setattr(encoder, name, blocks[-1:])
    try:
        replace_method(blocks[-1], "forward", forward, lambda: [result()])
    finally:
        setattr(encoder, name, blocks)


def _first_token_attention(
    projections: Projections, x_BTC: Tensor, head_dim: int, scale: float, dropout: float, mask: Tensor | None
) -> Tensor:
    """Compute the attention of the first token to all tokens: [B, T, C] -> [B, 1, C].

    projections: the layers for queries, keys and values
    mask: attention mask of the whole block, [B, 1, 1 or T, T]
    """
    q, k, v = (
        f(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for f, x in zip(projections, (x_BTC[:, :1], x_BTC, x_BTC), strict=True)
    )
    if mask is not None:
        mask = mask[:, :, :1]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale).transpose(1, 2).flatten(2)


def _clip_block(block: "CLIPEncoderLayer", hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    """Replacement of `CLIPEncoderLayer.forward`: [B, T, C] -> [B, 1, C]."""
    at = block.self_attn
    projections, dropout = (at.q_proj, at.k_proj, at.v_proj), float(at.dropout or 0) if block.training else 0.0
    context = _first_token_attention(projections, block.layer_norm1(hidden_states), at.head_dim, at.scale, dropout, None)
    x_B1C = hidden_states[:, :1] + at.out_proj(context)
    return x_B1C + block.mlp(block.layer_norm2(x_B1C))


def _bert_block(
    block: "ClapTextLayer", hidden_states: Tensor, attention_mask: Tensor | None = None, *_: object, **__: object
) -> Tensor:
    """Replacement of `ClapTextLayer.forward`: [B, T, C] -> [B, 1, C]."""
    at = block.attention.self
    projections, dropout = (at.query, at.key, at.value), at.dropout.p if block.training else 0.0
    context = _first_token_attention(projections, hidden_states, at.attention_head_size, at.scaling, dropout, attention_mask)
    return block.feed_forward_chunk(block.attention.output(context, hidden_states[:, :1]))
