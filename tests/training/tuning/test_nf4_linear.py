"""4-bit layers on a CPU: the values of NF4 at every width, and gradients through the frozen weight."""

import pytest
import torch
from torch import nn

from mmtune.model.artifact.low_rank import round_to_4bit
from mmtune.training.tuning.nf4_linear import dequantised_weight, nf4_linear

bitsandbytes = pytest.importorskip("bitsandbytes")


def nf4_by_hand(weight):
    """Blocks of 64 values, each scaled by its largest magnitude, to the nearest of the 16 levels."""
    levels = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    flat = weight.flatten()
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 64)]).view(-1, 64)
    scale = padded.abs().amax(1, keepdim=True)
    nearest = (padded / scale)[:, :, None].sub(levels).abs().argmin(2)
    return (levels[nearest] * scale).flatten()[: len(flat)].view_as(weight)


@pytest.mark.parametrize("width", [32, 64, 96, 100, 160])
def test_values_and_gradients_at_every_width(width):
    torch.manual_seed(0)
    layer = nn.Linear(width, 12)
    expected = nf4_by_hand(layer.weight.detach())
    assert torch.allclose(round_to_4bit(layer.weight, "tune"), expected, atol=1e-6)
    quantised = nf4_linear(layer, "tune")
    assert torch.allclose(dequantised_weight(quantised), expected, atol=1e-6)
    x = torch.randn(3, 5, width, requires_grad=True)
    y = quantised(x)
    assert torch.allclose(y, x @ expected.T + layer.bias, atol=1e-5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, expected.sum(0).expand(3, 5, width), atol=1e-5)
    weight = layer.weight.detach()
    assert float((expected - weight).norm() / weight.norm()) < 0.12
