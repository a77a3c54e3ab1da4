"""Depthwise convolutions in bfloat16: the gradients of torch's own convolution in float32, up to the rounding of bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmtune.backbones.cpu_fast import apply
from mmtune.backbones.cpu_fast.depthwise import (
    DepthwiseConv2d,
    SamePaddingDepthwiseConv2d,
    depthwise_conv,
    input_gradient,
    weight_gradient,
)


@pytest.mark.parametrize(
    "kernel, stride, padding", [(3, 1, 1), (3, 2, 0), (3, 2, 1), (5, 1, 2), (5, 2, 0), (5, 2, 2), (7, 1, 3), (9, 3, 4)]
)
@pytest.mark.parametrize("size", [11, 14])
def test_gradients_are_those_of_torch(kernel, stride, padding, size):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, size, size + 3, generator=random, requires_grad=True)
    weight = torch.randn(6, 1, kernel, kernel, generator=random, requires_grad=True)
    out = F.conv2d(x, weight, None, stride, padding, 1, 6)
    gradient = torch.randn(out.shape, generator=random)
    out.backward(gradient)
    torch.testing.assert_close(input_gradient(gradient, weight, x.shape, stride, padding), x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight_gradient(gradient, x, kernel, stride, padding), weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_a_step_under_autocast(bias):
    torch.manual_seed(0)
    ours = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=bias)
    theirs = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    apply(ours)
    assert type(ours) is DepthwiseConv2d
    x = torch.randn(2, 8, 12, 12)
    for layer in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, rtol=0.02, atol=0.02 * float(p.grad.abs().max()))


def test_float32_is_left_to_torch():
    x, weight = torch.randn(1, 4, 9, 9, dtype=torch.float64, requires_grad=True), torch.randn(4, 1, 5, 5, dtype=torch.float64)
    assert torch.equal(depthwise_conv(x, weight, None, 1, 2), F.conv2d(x, weight, None, 1, 2, 1, 4))


def test_a_network_of_timm_with_tensorflows_padding():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        names = list(model.state_dict())
        apply(model)
        torch.testing.assert_close(model(x), want)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), want, rtol=1e-4, atol=1e-5)
    kinds = {type(m) for m in model.modules()}
    assert {DepthwiseConv2d, SamePaddingDepthwiseConv2d} <= kinds and list(model.state_dict()) == names


def test_layers_that_do_not_fit_stay():
    layers = [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),  # fast already
        nn.Conv2d(4, 8, 5, groups=4),
        nn.Conv2d(4, 4, 5, groups=2),
        nn.Conv2d(4, 4, (5, 3), groups=4),
        nn.Conv2d(4, 4, 5, groups=4, dilation=2),
        nn.Conv2d(4, 4, 5, groups=4, padding="same"),
        nn.Conv2d(4, 4, 5, groups=4, padding=2, padding_mode="reflect"),
        nn.Conv2d(4, 4, 4, groups=4),
    ]
    for layer in layers:
        apply(layer)
        assert type(layer) is nn.Conv2d
