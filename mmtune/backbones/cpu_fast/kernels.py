"""Layers and attention with fewer passes over memory than upstream's: the same numbers up to rounding.

Shapes: B sequences of T tokens with C channels, in H heads of D. Times were measured on two AVX2 cores (AMD), in float32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.backbones.checkpoint_files import Untyped

QUICK = 1.702
LEVELS = 1 << 16  # a probability is kept to one part in so many


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Untyped, x: Tensor) -> Tensor:
        scaled = x * QUICK
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / QUICK)

    @staticmethod
    def backward(ctx: Untyped, gradient: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, scaled)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), https://arxiv.org/abs/1606.08415, in three passes and one backward: written as a product it takes eight, a
    sixth of a small CLIP's step."""

    def forward(self, x: Tensor) -> Tensor:
        return _QuickGELU.apply(x)


def keep_mask(like: Tensor, p: float) -> tuple[Tensor, float]:
    """(mask of the numbers that are kept, boolean [like.shape]; the factor that keeps their mean), from torch's own generator;
    0 <= p < 1.

    Sixteen random bits a number: `bernoulli_` draws a double for each, in one thread unless the processor is Intel's, which was
    a tenth of a small CLAP's step."""
    out = min(round(p * LEVELS), LEVELS - 1)
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: like.numel()] >= out - LEVELS // 2
    return kept.view(like.shape), LEVELS / (LEVELS - out)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Untyped, x: Tensor, p: float) -> Tensor:
        kept, ctx.factor = keep_mask(x, p)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Untyped, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.factor), None


class Dropout(nn.Dropout):
    """`nn.Dropout` with `keep_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return _Dropout.apply(x, self.p)


class Windows(NamedTuple):
    """The partition of sequences of T tokens into windows of L, as indices of rows of D numbers: `split` from [B, T, 3, H, D] to
    [3, B T / L, H, L, D] and `unsplit` back, `join` from [B T / L, H, L, D] to [B, T, H, D] and `unjoin` back."""

    size: int  # L
    split: Tensor
    unsplit: Tensor
    join: Tensor
    unjoin: Tensor


def windows(order_T: Tensor, size: int, batch: int, heads: int) -> Windows:
    """order_T: the T tokens, those of a window next to each other; size: tokens a window."""
    tokens = (order_T + len(order_T) * torch.arange(batch)[:, None]).view(-1, 1, size)
    head, third = torch.arange(heads)[:, None], torch.arange(3).view(3, 1, 1, 1)
    unjoin = (tokens * heads + head).flatten()
    split = ((tokens * 3 + third) * heads + head).flatten()
    return Windows(size, split, split.argsort(), unjoin.argsort(), unjoin)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Untyped, qkv_BT3HD: Tensor, bias: Tensor | None, scale: float, p: float, parts: Windows | None) -> Tensor:
        B, T, _, H, D = qkv_BT3HD.shape
        if parts is None:
            q, k, v = (x.transpose(1, 2).reshape(B * H, T, D) for x in qkv_BT3HD.unbind(2))
        else:
            q, k, v = qkv_BT3HD.view(-1, D).index_select(0, parts.split).view(3, -1, parts.size, D).unbind(0)
        L = q.shape[1]
        scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale)
        if bias is not None:
            scores.view(-1, len(bias), H, L, L).add_(bias)
        share = torch._softmax(scores, -1, False)
        kept, ctx.factor = keep_mask(share, p) if p else (None, 1.0)
        context = torch.bmm(share if kept is None else (share * kept).mul_(ctx.factor), v)
        ctx.save_for_backward(q, k, v, share, kept)
        ctx.shape, ctx.scale, ctx.parts, ctx.bias = qkv_BT3HD.shape, scale, parts, None if bias is None else bias.shape
        if parts is None:
            return context.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)
        return context.view(-1, D).index_select(0, parts.join).view(B, T, H * D)

    @staticmethod
    def backward(ctx: Untyped, gradient_BTC: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, share, kept = ctx.saved_tensors
        (B, T, _, H, D), L, parts = ctx.shape, q.shape[1], ctx.parts
        if parts is None:
            g = gradient_BTC.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        else:
            g = gradient_BTC.reshape(-1, D).index_select(0, parts.unjoin).view(-1, L, D)
        g_share = torch.bmm(g, v.transpose(1, 2))
        used = share
        if kept is not None:
            g_share, used = (g_share * kept).mul_(ctx.factor), (share * kept).mul_(ctx.factor)
        g_scores = torch._softmax_backward_data(g_share, share, -1, share.dtype)
        none, g_qkv = q.new_zeros(()), q.new_empty(3, *q.shape)
        torch.baddbmm(none, g_scores, k, beta=0, alpha=ctx.scale, out=g_qkv[0])
        torch.baddbmm(none, g_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=g_qkv[1])
        torch.bmm(used.transpose(1, 2), g, out=g_qkv[2])
        g_bias = None
        if ctx.needs_input_grad[1]:
            g_bias = g_scores.view(-1, ctx.bias[0], H, L, L).sum(0).sum_to_size(ctx.bias)
        if parts is None:
            back = g_qkv.view(3, B, H, T, D).permute(1, 3, 0, 2, 4).contiguous()
        else:
            back = g_qkv.view(-1, D).index_select(0, parts.unsplit).view(ctx.shape)
        return back, g_bias, None, None, None


def attend(qkv_BT3HD: Tensor, bias: Tensor | None, scale: float, p: float = 0.0, parts: Windows | None = None) -> Tensor:
    """softmax(scale q k^T + bias) v [B, T, H * D], with dropout `p` of the softmax; of whole sequences or in windows.

    `bias` [N, 1 or H, 1 or L, L] or None: added to every N sequences or windows (of L tokens) in turn. The softmax is
    stored for the backward pass, L numbers a token and head, which torch's fused attention avoids; for short sequences that one
    takes half as long again, since its backward pass hardly gains from a second thread."""
    return _Attend.apply(qkv_BT3HD, bias, scale, p, parts)


def project(x_BTC: Tensor, layers: tuple[Untyped, Untyped, Untyped], heads: int) -> Tensor:
    """Queries, keys and values [B, T, 3, H, D] of the three layers; of plain linear layers in a single product, which is up to
    half as fast again as three narrow ones."""
    if all(type(f) is nn.Linear and (f.bias is None) == (layers[0].bias is None) for f in layers):
        bias = None if layers[0].bias is None else torch.cat([f.bias for f in layers])
        out = F.linear(x_BTC, torch.cat([f.weight for f in layers]), bias).unflatten(-1, (3, -1))
    else:
        out = torch.stack([f(x_BTC) for f in layers], -2)
    return out.unflatten(-1, (heads, -1))


class PatchConv2d(nn.Conv2d):
    """A convolution over patches that do not overlap, as a matrix product."""

    @staticmethod
    def fits(layer: nn.Conv2d) -> bool:
        """Whether the patches of `layer` do not overlap."""
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
    """Replace the activations, dropouts and patch convolutions in `tower` by the layers of this file; weights keep their names."""
    for parent in list(tower.modules()):
        for name, child in list(parent.named_children()):
            if _is_quick_gelu(child):
                setattr(parent, name, QuickGELU())
            elif type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
            elif isinstance(child, nn.Conv2d) and PatchConv2d.fits(child):
                child.__class__ = PatchConv2d


def _is_quick_gelu(layer: nn.Module) -> bool:
    """Whether a layer without weights and parts, which is not torch's own, computes x * sigmoid(1.702 x)."""
    own = type(layer).__module__.startswith("torch.") or isinstance(layer, QuickGELU)
    if own or next(layer.children(), None) is not None or layer.state_dict():
        return False
    x = torch.linspace(-4, 4, 9)
    try:
        with torch.no_grad():
            y = layer(x)
    except Exception:  # a layer that takes something else than one tensor
        return False
    return isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, x * torch.sigmoid(QUICK * x), atol=1e-6)
