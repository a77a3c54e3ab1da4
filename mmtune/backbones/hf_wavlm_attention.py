"""WavLM's attention through its linear layers, so that adapters on them take part.

transformers passes the weights of these layers to torch's multi-head attention and never calls the layers themselves: a LoRA
adapter, which is added where a layer is called, would never be trained.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class LinearWavLMAttention(WavLMAttention):
    """WavLMAttention with the same results, without attention weights among its outputs."""

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, Any]:
        """Return attention's output [B, T, C], and None in place of the weights.

        hidden_states: [B, T, C]
        attention_mask: [B, T], 1 for frames, else padding; None means no padding
        gated_position_bias: [B * heads, T, T], added to the scores
        """
        batch, frames, _ = hidden_states.shape
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (x(hidden_states).view(batch, frames, self.num_heads, -1).transpose(1, 2) for x in layers)
        bias = gated_position_bias.view(batch, self.num_heads, frames, frames).to(query.dtype)
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask.ne(1)[:, None, None], float("-inf"))
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(output.transpose(1, 2).reshape(batch, frames, -1)), None


def use_linear_layers(module: torch.nn.Module) -> None:
    """Make every attention of a WavLM call its linear layers, in place. The weights and their names stay."""
    for part in module.modules():
        if type(part) is WavLMAttention:
            part.__class__ = LinearWavLMAttention
