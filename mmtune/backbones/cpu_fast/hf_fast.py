"""transformers' towers on a CPU with the steps of kernels.py in place of their own.

A module is changed only where its answer on noise is upstream's (another version of it may be built otherwise), and goes
upstream's way on an accelerator, under torch.compile, for long sequences and whenever somebody asks for its attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.backbones.cpu_fast.kernels import Windows, attend, project, quicken_layers, windows
from mmtune.backbones.cpu_fast.replace_method import replace_method

LONGEST = 128  # tokens; with more, torch's attention, which keeps no softmax, is as fast
NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


def quicken(tower: nn.Module) -> None:
    """Change what can be changed in `tower`, in place; weights keep their names."""
    quicken_layers(tower)
    for module in tower.modules():
        kind = type(module).__name__
        if kind == "ClapAudioEncoder":
            _put(module, "reshape_mel2img", _stretched, _spectrograms(module))
        elif kind == "ClapAudioLayer":
            _put(module, "forward", _window_layer, _grids(module))
        elif kind in ("CLIPAttention", "SiglipAttention", "ClapTextSelfAttention", "BertSelfAttention"):
            _put(module, "forward", _attention, _sequences(module))


def _put(module: Any, name: str, method: Callable[..., Any], noises: list[tuple[Any, ...]]) -> None:
    def answers() -> list[Tensor]:
        found = [getattr(module, name)(*noise) for noise in noises]
        return [f[0] if isinstance(f, tuple) else f for f in found]

    replace_method(module, name, method, answers)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _upstream(x: Tensor, longest: int) -> bool:
    return x.device.type != "cpu" or longest > LONGEST or torch.compiler.is_compiling()


def _parts(module: Any) -> tuple[Any, Any, Any]:
    names = next(n for n in NAMES if hasattr(module, n[0]))
    return getattr(module, names[0]), getattr(module, names[1]), getattr(module, names[2])


def _sequences(module: Any) -> list[tuple[Any, ...]]:
    width = _parts(module)[0].in_features
    mask = torch.zeros(2, 1, 3, 3)
    mask[1, ..., 2] = torch.finfo(mask.dtype).min
    return [(_noise(2, 3, width),), (_noise(2, 3, width), mask)]


def _attention(module: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **more: Any) -> Any:
    """[B, T, C] -> ([B, T, C], None), in place of `forward` of transformers' self-attentions, with or without an output
    projection; the mask [B, 1, 1 or T, T] says who sees whom (boolean) or is added."""
    T = hidden_states.shape[1]
    causal = more.get("is_causal", getattr(module, "is_causal", None))
    unsaid = attention_mask is None and causal is None
    asked = any(x is not None for x in rest) or any(more.get(k) for k in ("cache", "past_key_values", "output_attentions"))
    if _upstream(hidden_states, T) or unsaid or asked:
        return type(module).forward(module, hidden_states, attention_mask, *rest, **more)
    clip = hasattr(module, "out_proj")
    heads = module.num_heads if clip else module.num_attention_heads
    p = module.dropout if clip else module.dropout.p
    qkv = project(hidden_states, _parts(module), heads)
    bias = _bias(attention_mask, T, bool(causal), qkv)
    seen = attend(qkv, bias, module.scale if clip else module.scaling, p if module.training else 0.0)
    return (module.out_proj(seen) if clip else seen), None


def _bias(mask: Tensor | None, T: int, causal: bool, like: Tensor) -> Tensor | None:
    if mask is None and not causal:
        return None
    if mask is None:
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, torch.finfo(like.dtype).min)


def _grids(module: Any) -> list[tuple[Any, ...]]:
    """Of the size that the block was built for, which it takes its shift from."""
    (height, width), channels = module.input_resolution, module.layernorm_before.normalized_shape[0]
    return [(_noise(2, height * width, channels), (height, width))]


@functools.lru_cache(16)
@torch.inference_mode(False)  # what is kept serves training too
def _windows(size: tuple[int, int], side: int, shift: int, batch: int, heads: int) -> Windows:
    """The windows of a grid [height, width] that is rolled by `shift` first, as Swin's are (https://arxiv.org/abs/2103.14030)."""
    order = torch.arange(size[0] * size[1]).view(size).roll((-shift, -shift), (0, 1))
    order = order.view(size[0] // side, side, size[1] // side, side).transpose(1, 2).flatten()
    return windows(order, side * side, batch, heads)


def _window_layer(
    block: Any, hidden_BTC: Tensor, size: tuple[int, int], output_attentions: bool = False, always_partition: bool = False
) -> tuple[Tensor]:
    """`ClapAudioLayer.forward`: [B, height * width, C] -> ([B, height * width, C],)."""
    if not always_partition:
        block.set_shift_and_window_size(size)
    side, (height, width), attention = int(block.window_size), size, block.attention.self
    if _upstream(hidden_BTC, side * side) or output_attentions or height % side or width % side:
        return type(block).forward(block, hidden_BTC, size, output_attentions, always_partition)
    heads = attention.num_attention_heads
    qkv = project(block.layernorm_before(hidden_BTC), (attention.query, attention.key, attention.value), heads)
    table = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
    bias = table.view(side * side, side * side, heads).permute(2, 0, 1)[None]
    apart = block.get_attn_mask(height, width, dtype=bias.dtype, device=bias.device)
    if apart is not None:
        bias = bias + apart[:, None]
    p = attention.dropout.p if block.training else 0.0
    parts = _windows((height, width), side, int(block.shift_size), len(hidden_BTC), heads)
    seen = attend(qkv, bias.to(qkv.dtype), attention.attention_head_size**-0.5, p, parts)
    x = hidden_BTC + block.drop_path(block.attention.output(seen, None))
    return (x + block.output(block.intermediate(block.layernorm_after(x))),)


def _spectrograms(module: Any) -> list[tuple[Any, ...]]:
    return [(_noise(2, 1, n, module.config.num_mel_bins),) for n in (101, 64)]


@functools.lru_cache(16)
@torch.inference_mode(False)
def _bicubic(long: int, longer: int) -> Tensor:
    """[longer, long]: torch's bicubic interpolation of `long` numbers as a matrix."""
    return F.interpolate(torch.eye(long)[None, None], (longer, long), mode="bicubic", align_corners=True)[0, 0]


def _stretched(encoder: Any, mel_BCTM: Tensor) -> Tensor:
    """`ClapAudioEncoder.reshape_mel2img`: [B, C, frames, bins] -> a square picture [B, C, side, side] of pieces of time, one
    above the other; the interpolation over time as a matrix product (torch's backward pass of it takes twice as long)."""
    B, C, T, M = mel_BCTM.shape
    pieces, side = encoder.freq_ratio, int(encoder.spec_size)
    if _upstream(mel_BCTM, 0) or T >= side * pieces or side // pieces != M:
        return type(encoder).reshape_mel2img(encoder, mel_BCTM)
    # bmm and not matmul: the gradient must come back with frames before bins. Torch's batch norm (2.14, CPU), which comes
    # before this, takes a gradient laid out otherwise than its input as if it were not, and gets its weights' wrong
    stretch = _bicubic(T, side * pieces).to(mel_BCTM.dtype).expand(B * C, -1, -1)
    time = torch.bmm(stretch, mel_BCTM.reshape(B * C, T, M))
    return time.view(B, C, pieces, side, M).transpose(3, 4).reshape(B, C, side, side)
