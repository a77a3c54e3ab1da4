"""Faster CPU implementations for CLAP's audio tower (HTSAT, a Swin transformer).

They replace the attention within shifted windows and the resizing of the input spectrogram.
"""

import functools
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.backbones.cpu_fast.kernels import Windows, attend, project, windows
from mmtune.backbones.cpu_fast.replace_method import random_tensor, replace_by_inputs
from mmtune.backbones.cpu_fast.self_attention import use_upstream

if TYPE_CHECKING:
    from transformers.models.clap.modeling_clap import ClapAudioEncoder, ClapAudioLayer

# Attributes by which a Swin block and the audio encoder are recognised.
BLOCK = (
    "input_resolution",
    "window_size",
    "shift_size",
    "set_shift_and_window_size",
    "get_attn_mask",
    "attention",
    "drop_path",
)
ENCODER = ("reshape_mel2img", "freq_ratio", "spec_size")


def replace_window_attention(module: nn.Module) -> None:
    """Replace `forward` of a Swin block whose shift and window size depend on the size of its input; else do nothing."""
    if not all(hasattr(module, name) for name in BLOCK):
        return
    block = cast("ClapAudioLayer", module)
    (height, width), channels = block.input_resolution, block.layernorm_before.normalized_shape[0]
    # a test input of the size that the block was built for, so that the block shifts its windows as in normal use
    replace_by_inputs(module, "forward", _forward, [(random_tensor(2, height * width, channels), (height, width))])


def replace_audio_encoder(module: nn.Module) -> None:
    """Replace `reshape_mel2img`, which turns the spectrogram into a square image, if `module` is CLAP's audio encoder."""
    if all(hasattr(module, name) for name in ENCODER):
        bins = cast("ClapAudioEncoder", module).config.num_mel_bins
        inputs = [(random_tensor(2, 1, frames, bins),) for frames in (101, 64)]
        replace_by_inputs(module, "reshape_mel2img", _reshape_mel2img, inputs)


@functools.lru_cache(16)
@torch.inference_mode(False)  # the cached tensors are also used in training, where inference tensors are not allowed
def _windows(size: tuple[int, int], side: int, shift: int, batch: int, heads: int) -> Windows:
    """Build the windows of a grid of tokens that is first rolled by `shift` in both directions, as in Swin (arXiv 2103.14030).

    size: (height, width) of the grid
    side: side of a window, in tokens
    shift: how far the grid is rolled, in tokens
    batch: number of grids
    heads: number of attention heads
    """
    order = torch.arange(size[0] * size[1]).view(size).roll((-shift, -shift), (0, 1))
    order = order.view(size[0] // side, side, size[1] // side, side).transpose(1, 2).flatten()
    return windows(order, side * side, batch, heads)


def _forward(
    block: "ClapAudioLayer",
    hidden_BTC: Tensor,
    size: tuple[int, int],
    output_attentions: bool = False,
    always_partition: bool = False,
) -> tuple[Tensor, ...]:
    """Replacement of `ClapAudioLayer.forward`: [B, height * width, C] -> ([B, height * width, C],).

    size: (height, width) of the grid of tokens
    """
    if not always_partition:
        block.set_shift_and_window_size(size)
    side, (height, width), attention = int(block.window_size), size, block.attention.self
    if use_upstream(hidden_BTC, side * side) or output_attentions or height % side or width % side:
        return type(block).forward(block, hidden_BTC, size, output_attentions, always_partition)
    heads = attention.num_attention_heads
    qkv = project(block.layernorm_before(hidden_BTC), (attention.query, attention.key, attention.value), heads)
    table = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
    bias = table.view(side * side, side * side, heads).permute(2, 0, 1)[None]
    separate = block.get_attn_mask(height, width, dtype=bias.dtype, device=bias.device)
    if separate is not None:
        bias = bias + separate[:, None]
    p = attention.dropout.p if block.training else 0.0
    layout = _windows((height, width), side, int(block.shift_size), len(hidden_BTC), heads)
    context = attend(qkv, bias.to(qkv.dtype), attention.attention_head_size**-0.5, p, layout)
    x = hidden_BTC + block.drop_path(block.attention.output(context, None))
    return (x + block.output(block.intermediate(block.layernorm_after(x))),)


@functools.lru_cache(16)
@torch.inference_mode(False)
def _bicubic(size: int, new_size: int) -> Tensor:
    """Return torch's bicubic interpolation from `size` to `new_size` values as a matrix [new_size, size]."""
    return F.interpolate(torch.eye(size)[None, None], (new_size, size), mode="bicubic", align_corners=True)[0, 0]


def _reshape_mel2img(encoder: "ClapAudioEncoder", mel_BCTM: Tensor) -> Tensor:
    """Replacement of `ClapAudioEncoder.reshape_mel2img`: [B, C, frames, bins] -> a square image [B, C, side, side].

    The spectrogram is interpolated over time, cut into pieces, and the pieces are stacked. The interpolation is computed as a
    matrix product, because the backward pass of torch's own interpolation takes twice as long.
    """
    B, C, T, M = mel_BCTM.shape
    pieces, side = encoder.freq_ratio, int(encoder.spec_size)
    if use_upstream(mel_BCTM, 0) or T >= side * pieces or side // pieces != M:
        return type(encoder).reshape_mel2img(encoder, mel_BCTM)
    # bmm instead of matmul, because matmul would return a gradient whose memory layout differs from that of the input. The
    # batch norm before this layer computes wrong weight gradients from such a gradient (a bug of torch 2.14 on CPU).
    matrix = _bicubic(T, side * pieces).to(mel_BCTM.dtype).expand(B * C, -1, -1)
    time = torch.bmm(matrix, mel_BCTM.reshape(B * C, T, M))
    return time.view(B, C, pieces, side, M).transpose(3, 4).reshape(B, C, side, side)
