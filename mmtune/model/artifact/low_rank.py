"""Low-rank deltas of adapters and the rounding of weights to 4 bits: all that is needed to merge adapters into their base."""

from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from mmtune.errors import MissingExtra


@dataclass
class LowRankDelta:
    """The change of one adapted weight: factor * b @ a. `name` is the weight's name in the model without adapters."""

    name: str
    a: Tensor
    b: Tensor
    factor: float

    def delta(self, like: Tensor) -> Tensor:
        """In the shape of the weight `like`."""
        return ((self.b.flatten(1) @ self.a.flatten(1)) * self.factor).view_as(like)


def bitsandbytes(key: str) -> ModuleType:
    """The library that holds weights in 4 bits. MissingExtra, naming `key`, where it is not installed."""
    try:
        import bitsandbytes as library
    except ImportError:
        raise MissingExtra(f'{key}: qlora needs bitsandbytes: pip install "mmtune[qlora]" (or how: lora)') from None
    return library


def round_to_4bit(weight: Tensor, key: str) -> Tensor:
    """The float32 values that a 4-bit layer (NF4, arXiv 2305.14314) of this weight computes with."""
    F = bitsandbytes(key).functional
    flat = weight.detach().contiguous().flatten()  # on a CPU matrices are dequantised wrongly, see training.tuning.nf4_linear
    packed, state = F.quantize_4bit(flat, compress_statistics=False, quant_type="nf4")
    return F.dequantize_4bit(packed, state).view_as(weight).to(weight.dtype)
