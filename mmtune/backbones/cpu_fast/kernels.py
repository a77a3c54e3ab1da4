"""CPU implementations of layers and attention that read and write memory fewer times than those of PyTorch and transformers.

Results are the same up to rounding. Times in this file were measured on two AVX2 cores (AMD), in float32.

Shapes: B sequences, T tokens a sequence, C channels, H attention heads of dimension D.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUICK = 1.702  # the factor in QuickGELU
LEVELS = 1 << 16  # random 16-bit integers decide what is dropped, so dropout probabilities are multiples of 1 / 65536


class _Context(Protocol):
    """The `ctx` that torch passes to `forward` and `backward`: saved tensors, and attributes that `forward` sets.

    factor: the factor by which dropout scales what it keeps
    """

    saved_tensors: tuple[Tensor, ...]
    factor: float

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _AttentionContext(_Context, Protocol):
    """The `ctx` of `_Attend`.

    needs_input_grad: whether each argument of `forward` needs a gradient
    shape: of queries, keys and values, (B, T, 3, H, D)
    scale: factor of the attention scores
    parts: the windows, None for attention within whole sequences
    bias_shape: shape of the bias, empty without one
    """

    needs_input_grad: tuple[bool, ...]
    shape: torch.Size
    scale: float
    parts: "Windows | None"
    bias_shape: torch.Size


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor) -> Tensor:
        scaled = x * QUICK
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / QUICK)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, scaled)


class QuickGELU(nn.Module):
    """QuickGELU, x * sigmoid(1.702 x) (arXiv 1606.08415), computed by torch's SiLU in few passes over memory.

    It takes three passes forward and one backward. Written as a product it takes eight in total, which is a sixth of the time
    of a training step of a small CLIP.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _QuickGELU.apply(x)


def keep_mask(like: Tensor, p: float) -> tuple[Tensor, float]:
    """Draw a dropout mask from torch's global generator.

    like: a tensor of the shape of the mask
    p: probability that an element is dropped, 0 <= p < 1

    Returns the boolean mask, True for the elements to keep, and the factor that restores their mean, 1 / (1 - p). Only 16
    random bits are drawn per element. torch's `bernoulli_` draws a double per element, on all but Intel processors in a single
    thread; that took a tenth of a training step of a small CLAP.
    """
    dropped = min(round(p * LEVELS), LEVELS - 1)
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # one int64 for 4 elements
    kept = bits.view(torch.int16)[: like.numel()] >= dropped - LEVELS // 2  # int16 starts at -LEVELS / 2
    return kept.view(like.shape), LEVELS / (LEVELS - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, p: float) -> Tensor:
        kept, ctx.factor = keep_mask(x, p)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.factor), None


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws its mask by `keep_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return _Dropout.apply(x, self.p)


class Windows(NamedTuple):
    """Index tensors that partition sequences of T tokens into windows of L tokens, and undo it.

    Each index selects rows of D elements from a tensor that is viewed as [-1, D].

    size: L, the tokens in a window
    split: from queries, keys and values [B, T, 3, H, D] to windows [3, B T / L, H, L, D]
    unsplit: the inverse of `split`
    join: from windows [B T / L, H, L, D] to sequences [B, T, H, D]
    unjoin: the inverse of `join`
    """

    size: int
    split: Tensor
    unsplit: Tensor
    join: Tensor
    unjoin: Tensor


def windows(order_T: Tensor, size: int, batch: int, heads: int) -> Windows:
    """Build the indices of `Windows`.

    order_T: the positions of the T tokens, sorted so that the tokens of each window are contiguous
    size: tokens in a window
    batch: number of sequences
    heads: number of attention heads
    """
    tokens = (order_T + len(order_T) * torch.arange(batch)[:, None]).view(-1, 1, size)
    head, third = torch.arange(heads)[:, None], torch.arange(3).view(3, 1, 1, 1)
    unjoin = (tokens * heads + head).flatten()
    split = ((tokens * 3 + third) * heads + head).flatten()
    return Windows(size, split, split.argsort(), unjoin.argsort(), unjoin)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _AttentionContext, qkv_BT3HD: Tensor, bias: Tensor | None, scale: float, p: float, parts: Windows | None
    ) -> Tensor:
        B, T, _, H, D = qkv_BT3HD.shape
        if parts is None:
            q, k, v = (x.transpose(1, 2).reshape(B * H, T, D) for x in qkv_BT3HD.unbind(2))
        else:
            q, k, v = qkv_BT3HD.view(-1, D).index_select(0, parts.split).view(3, -1, parts.size, D).unbind(0)
        L = q.shape[1]
        scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale)
        if bias is not None:
            scores.view(-1, len(bias), H, L, L).add_(bias)
        attention = torch._softmax(scores, -1, False)
        kept, ctx.factor = keep_mask(attention, p) if p else (None, 1.0)
        context = torch.bmm(attention if kept is None else (attention * kept).mul_(ctx.factor), v)
        ctx.save_for_backward(q, k, v, attention, kept)
        ctx.shape, ctx.scale, ctx.parts = qkv_BT3HD.shape, scale, parts
        ctx.bias_shape = torch.Size() if bias is None else bias.shape
        if parts is None:
            return context.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)
        return context.view(-1, D).index_select(0, parts.join).view(B, T, H * D)

    @staticmethod
    def backward(ctx: _AttentionContext, gradient_BTC: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, attention, kept = ctx.saved_tensors
        (B, T, _, H, D), L, parts = ctx.shape, q.shape[1], ctx.parts
        if parts is None:
            g = gradient_BTC.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        else:
            g = gradient_BTC.reshape(-1, D).index_select(0, parts.unjoin).view(-1, L, D)
        g_attention = torch.bmm(g, v.transpose(1, 2))
        dropped_out = attention
        if kept is not None:
            g_attention, dropped_out = (g_attention * kept).mul_(ctx.factor), (attention * kept).mul_(ctx.factor)
        g_scores = torch._softmax_backward_data(g_attention, attention, -1, attention.dtype)
        none, g_qkv = q.new_zeros(()), q.new_empty(3, *q.shape)
        torch.baddbmm(none, g_scores, k, beta=0, alpha=ctx.scale, out=g_qkv[0])
        torch.baddbmm(none, g_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=g_qkv[1])
        torch.bmm(dropped_out.transpose(1, 2), g, out=g_qkv[2])
        g_bias = None
        if ctx.needs_input_grad[1]:
            g_bias = g_scores.view(-1, ctx.bias_shape[0], H, L, L).sum(0).sum_to_size(ctx.bias_shape)
        if parts is None:
            back = g_qkv.view(3, B, H, T, D).permute(1, 3, 0, 2, 4).contiguous()
        else:
            back = g_qkv.view(-1, D).index_select(0, parts.unsplit).view(ctx.shape)
        return back, g_bias, None, None, None


def attend(qkv_BT3HD: Tensor, bias: Tensor | None, scale: float, p: float = 0.0, parts: Windows | None = None) -> Tensor:
    """Compute attention, dropout(softmax(scale * q k^T + bias)) v: [B, T, 3, H, D] -> [B, T, H * D].

    qkv_BT3HD: queries, keys and values
    bias: added to the attention scores, [N, 1 or H, 1 or L, L], or None; sequence (or window) number i gets bias[i % N]
    scale: factor of q k^T
    p: dropout probability
    parts: attend within these windows of L tokens; None means within the whole sequence, L = T

    The softmax is stored for the backward pass, L values per token and head. torch's fused attention does not store it, but for
    short sequences it takes 1.5 times as long, because its backward pass hardly benefits from a second thread.
    """
    return _Attend.apply(qkv_BT3HD, bias, scale, p, parts)


def project(x_BTC: Tensor, layers: tuple[nn.Module, nn.Module, nn.Module], heads: int) -> Tensor:
    """Compute queries, keys and values [B, T, 3, H, D] by the three projection layers.

    Plain linear layers are computed in a single matrix product, which is up to 1.5 times as fast as three separate ones.
    """
    linear = [f for f in layers if type(f) is nn.Linear]
    if len(linear) == 3 and len({f.bias is None for f in linear}) == 1:
        bias = None if linear[0].bias is None else torch.cat([f.bias for f in linear])
        out = F.linear(x_BTC, torch.cat([f.weight for f in linear]), bias).unflatten(-1, (3, -1))
    else:
        out = torch.stack([f(x_BTC) for f in layers], -2)
    return out.unflatten(-1, (heads, -1))


class PatchConv2d(nn.Conv2d):
    """A convolution over patches that do not overlap (kernel size = stride), computed as a matrix product."""

    @staticmethod
    def fits(layer: nn.Conv2d) -> bool:
        """Whether `layer` can be replaced: its patches do not overlap, and it has no padding, groups or dilation."""
        same = layer.kernel_size == layer.stride and layer.groups == 1 and layer.dilation == (1, 1)
        return type(layer) is nn.Conv2d and same and layer.padding in ((0, 0), "valid")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        h, w = self.stride
        if x_BCHW.device.type != "cpu" or H % h or W % w or torch.compiler.is_compiling():
            return super().forward(x_BCHW)
        patches = x_BCHW.view(B, C, H // h, h, W // w, w).permute(0, 2, 4, 1, 3, 5).reshape(B, H // h, W // w, C * h * w)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def replace_layers(tower: nn.Module) -> None:
    """Replace QuickGELU activations, dropouts and patch convolutions in `tower` by the layers of this file, in place.

    The names of the weights do not change.
    """
    for parent in list(tower.modules()):
        for name, child in list(parent.named_children()):
            if _is_quick_gelu(child):
                setattr(parent, name, QuickGELU())
            elif type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
            elif isinstance(child, nn.Conv2d) and PatchConv2d.fits(child):
                child.__class__ = PatchConv2d


def _is_quick_gelu(layer: nn.Module) -> bool:
    """Whether `layer` computes x * sigmoid(1.702 x). False for layers of torch, and for layers with weights or submodules."""
    known = type(layer).__module__.startswith("torch.") or isinstance(layer, QuickGELU)
    if known or next(layer.children(), None) is not None or layer.state_dict():
        return False
    x = torch.linspace(-4, 4, 9)
    try:
        with torch.no_grad():
            y = layer(x)
    except Exception:  # a layer that does not take a single tensor
        return False
    return isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, x * torch.sigmoid(QUICK * x), atol=1e-6)
