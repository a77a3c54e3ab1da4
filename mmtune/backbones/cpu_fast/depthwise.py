"""The backward pass of depthwise convolutions in bfloat16, which is the slowest part of tuning a convolutional network on a CPU.

oneDNN has fast kernels in bfloat16 for the forward pass and for the weight gradient of 3 x 3 kernels, but not for the weight
gradient of larger kernels, nor for the input gradient with a stride. Both are computed here by those fast kernels: a larger kernel's
gradient is put together from those of its 3 x 3 parts, and the input gradient of a convolution with a stride is that of one without,
with zeros between the gradients. One core with AVX-512 bf16 (AMD), 16 images, gradients of input and weight: [1152, 6, 6] with a kernel
of 5 x 5 40 -> 3 ms, [144, 24, 24] with stride 2 125 -> 27 ms. The forward pass is unchanged. In float32 torch's own is used.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART = 3  # side of the kernels whose weight gradient oneDNN computes fast


class _ConvContext(Protocol):
    """The `ctx` of `_DepthwiseConv`: the saved tensors, and the arguments of the convolution."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    stride: int
    padding: int

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _ConvContext, x_BCHW: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x_BCHW, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: _ConvContext, gradient_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        gradient_BCHW = gradient_BCHW.contiguous(memory_format=torch.channels_last)
        of_x, of_weight = None, None
        if ctx.needs_input_grad[0]:
            of_x = input_gradient(gradient_BCHW, weight, x_BCHW.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(gradient_BCHW, x_BCHW, weight.shape[-1], ctx.stride, ctx.padding)
        return of_x, of_weight, None, None


def input_gradient(gradient_BCHW: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
    """Return the gradient of the input [B, C, H, W] of a depthwise convolution.

    gradient_BCHW: gradient of its output
    weight: [C, 1, K, K]
    shape: of the input
    """
    B, C, H, W = shape
    height, width, kernel = *gradient_BCHW.shape[2:], weight.shape[-1]
    spread = gradient_BCHW.new_zeros(B, H + kernel - 1, W + kernel - 1, C).permute(0, 3, 1, 2)
    first = kernel - 1 - padding
    rows, columns = (slice(first, first + stride * (n - 1) + 1, stride) for n in (height, width))
    spread[:, :, rows, columns] = gradient_BCHW
    return F.conv2d(spread, weight.flip(2, 3), None, 1, 0, 1, C)


def weight_gradient(gradient_BCHW: Tensor, x_BCHW: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return the gradient [C, 1, kernel, kernel] of the weight of a depthwise convolution, from its 3 x 3 parts."""
    C, height, width = gradient_BCHW.shape[1:]
    x_BCHW = F.pad(x_BCHW, (padding,) * 4)
    result = gradient_BCHW.new_empty(C, 1, kernel, kernel)
    weight = gradient_BCHW.new_empty(C, 1, PART, PART)  # only its shape counts
    starts = [
        *range(0, kernel - PART, PART),
        kernel - PART,
    ]  # parts overlap if the kernel is no multiple of 3; values are equal there
    for i in starts:
        for j in starts:
            part = x_BCHW[:, :, i : i + stride * (height - 1) + PART, j : j + stride * (width - 1) + PART]
            part = part.contiguous(memory_format=torch.channels_last)
            strides, zeros, ones, only_weight = [stride, stride], [0, 0], [1, 1], [False, True, False]
            gradients = torch.ops.aten.convolution_backward(
                gradient_BCHW, part, weight, None, strides, zeros, ones, False, zeros, C, only_weight
            )
            result[:, :, i : i + PART, j : j + PART] = gradients[1]
    return result


def depthwise_conv(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Convolve each channel with its own kernel [C, 1, K, K], in the dtype that autocast chooses."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x_BCHW, weight = x_BCHW.to(dtype), weight.to(dtype)
    if x_BCHW.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.conv2d(x_BCHW, weight, bias, stride, padding, 1, len(weight))
    out: Tensor = _DepthwiseConv.apply(x_BCHW, weight, stride, padding)
    return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with a square kernel of odd size >= 3; its padding is a number."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x_BCHW)
        assert isinstance(self.padding, tuple)
        return depthwise_conv(x_BCHW, self.weight, self.bias, self.stride[0], self.padding[0])


class SamePaddingDepthwiseConv2d(nn.Conv2d):
    """The same with TensorFlow's padding, which depends on the size of the input: timm's Conv2dSame."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        from timm.layers import pad_same

        padded: Tensor = pad_same(x_BCHW, list(self.kernel_size), list(self.stride), list(self.dilation))
        if x_BCHW.device.type != "cpu" or torch.compiler.is_compiling():
            return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)
        return depthwise_conv(padded, self.weight, self.bias, self.stride[0], 0)


def replace_depthwise(layer: nn.Module) -> None:
    """Replace a depthwise convolution by the class of this file that fits, in place; leave other layers as they are."""
    if not isinstance(layer, nn.Conv2d):
        return
    kernel, stride = layer.kernel_size, layer.stride
    square = kernel[0] == kernel[1] and stride[0] == stride[1] and layer.dilation == (1, 1)
    depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
    if not (square and depthwise and kernel[0] % 2 and kernel[0] >= PART and layer.padding_mode == "zeros"):
        return
    if kernel[0] == PART and stride[0] == 1:
        return  # oneDNN's own is fast
    if type(layer) is nn.Conv2d and isinstance(layer.padding, tuple) and layer.padding[0] == layer.padding[1] < kernel[0]:
        layer.__class__ = DepthwiseConv2d
    elif type(layer).__name__ == "Conv2dSame" and type(layer).__module__.startswith("timm."):
        layer.__class__ = SamePaddingDepthwiseConv2d
