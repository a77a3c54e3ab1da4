"""What adapters do to a weight, and the values that 4 bits hold of it: enough to put a tuned model together again."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmtune.errors import MissingExtra


@dataclass
class Low:
    """One adapted weight: delta = factor * b @ a; `name` is the weight's plain name in the model."""

    name: str
    a: Tensor
    b: Tensor
    factor: float

    def delta(self, like: Tensor) -> Tensor:
        """In the shape of the weight."""
        return ((self.b.flatten(1) @ self.a.flatten(1)) * self.factor).view_as(like)


def bitsandbytes(key: str) -> Any:
    """The library that holds weights in 4 bits. MissingExtra, naming `key`, where it is not installed."""
    try:
        import bitsandbytes as found
    except ImportError:
        raise MissingExtra(f'{key}: qlora needs bitsandbytes: pip install "mmtune[qlora]" (or how: lora)') from None
    return found


def round_to_4bit(weight: Tensor, key: str) -> Tensor:
    """The float32 values that a 4-bit layer (NF4, arXiv 2305.14314) of this weight works with."""
    F = bitsandbytes(key).functional
    packed, state = F.quantize_4bit(weight.detach().contiguous(), compress_statistics=False, quant_type="nf4")
    return F.dequantize_4bit(packed, state).to(weight.dtype)
