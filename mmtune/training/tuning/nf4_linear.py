"""A 4-bit linear layer (NF4, Dettmers et al., arXiv 2305.14314) whose weight is dequantised correctly on a CPU.

On a CPU, bitsandbytes 0.50 dequantises a matrix wrongly if its rows have an odd multiple of 32 values (relative error 0.3
instead of 0.09). The same values as one long vector are dequantised correctly. So on a CPU the weight is dequantised as a
vector. This is done again in the backward pass, so that no float copy of the weight is kept in between.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmtune.model.artifact.low_rank import bitsandbytes


class _FrozenLinear(torch.autograd.Function):
    """Computes x @ weight.T for a frozen 4-bit weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return x @ dequantised_weight(layer).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ dequantised_weight(ctx.layer), None


def dequantised_weight(layer: Any) -> Tensor:
    """Return the weight that the layer computes with, float32 [out_features, in_features].

    layer: a bitsandbytes Linear4bit
    """
    import bitsandbytes.functional as F

    packed, state = layer.weight.data, layer.weight.quant_state
    if packed.device.type != "cpu":
        return F.dequantize_4bit(packed, state).float()
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])  # see the module docstring
    try:
        return F.dequantize_4bit(packed, state).view(shape).float()
    finally:
        state.shape = shape


def nf4_linear(layer: nn.Linear, key: str) -> nn.Linear:
    """Convert a linear layer to 4 bits. Raises MissingExtra if bitsandbytes is not installed.

    key: the recipe key, for messages
    """
    library: Any = bitsandbytes(key)

    class NF4Linear(library.nn.Linear4bit):
        """The bitsandbytes layer with another forward pass on a CPU. It is a subclass, so that peft recognises it."""

        def forward(self, x: Tensor) -> Tensor:
            if self.weight.device.type != "cpu":
                return super().forward(x)
            with torch.autocast("cpu", enabled=False):
                y = _FrozenLinear.apply(x.float(), self)
            return (y if self.bias is None else y + self.bias).to(x.dtype)

    quantised = NF4Linear(
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        compute_dtype=torch.float32,
        compress_statistics=False,
        quant_type="nf4",
    )
    quantised.load_state_dict(layer.state_dict())
    return quantised.to(layer.weight.device)
