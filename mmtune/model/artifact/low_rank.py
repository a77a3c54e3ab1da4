"""Compute the weight change of a LoRA adapter, and the values of 4-bit quantized weights (QLoRA)."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from mmtune.errors import MissingExtra


@dataclass
class LowRankDelta:
    """The change of one adapted weight, scaling * b @ a.

    name: name of the weight in the model without adapters
    a: low-rank matrix [rank, in, ...]
    b: low-rank matrix [out, rank, ...]
    scaling: alpha / rank
    """

    name: str
    a: Tensor
    b: Tensor
    scaling: float

    def delta(self, like: Tensor) -> Tensor:
        """Return the change in the shape of the weight `like`."""
        return ((self.b.flatten(1) @ self.a.flatten(1)) * self.scaling).view_as(like)


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Without the warning of bitsandbytes, which peft imports too, that a faster CPU kernel of another package is missing."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def bitsandbytes(key: str) -> ModuleType:
    """Import the library for 4-bit quantization.

    key: the recipe key or directory that needs it, for the message

    Raises MissingExtra if it is not installed.
    """
    try:
        with quiet_import():
            import bitsandbytes as library
    except ImportError:
        raise MissingExtra(f'{key}: qlora needs bitsandbytes: pip install "mmtune[qlora]" (or how: lora)') from None
    return library


def round_to_4bit(weight: Tensor, key: str) -> Tensor:
    """Quantize a weight to 4 bits (NF4, arXiv 2305.14314) and dequantize it: the values that a 4-bit layer computes with.

    key: as in `bitsandbytes`
    """
    F = bitsandbytes(key).functional
    # flattened, because bitsandbytes dequantizes matrices wrongly on a CPU (see training.tuning.nf4_linear)
    flat = weight.detach().contiguous().flatten()
    packed, state = F.quantize_4bit(flat, compress_statistics=False, quant_type="nf4")
    return F.dequantize_4bit(packed, state).view_as(weight).to(weight.dtype)
