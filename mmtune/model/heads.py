"""Heads: the layers between a tower and the shared space."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.contracts import JsonObject


@dataclass(frozen=True)
class HeadKind:
    """The structure of a head that is not a linear layer without bias.

    bias: whether the linear layer has a bias
    hidden: width of the hidden layer of the residual MLP; 0 means that there is no MLP
    power: exponent of the tower's features before the layers, see `signed_power`; 1 leaves them as they are
    """

    bias: bool = False
    hidden: int = 0
    power: float = 1.0

    def to_json(self) -> JsonObject:
        """Convert to the JSON object that is stored in a manifest; without `power` if it is 1, as earlier versions wrote it."""
        return {k: v for k, v in asdict(self).items() if k != "power" or v != 1.0}

    @classmethod
    def from_json(cls, document: JsonObject) -> "HeadKind":
        """Read a head from a manifest. Raises KeyError, TypeError or ValueError if the document is not valid."""
        return cls(bool(document["bias"]), int(document["hidden"]), float(document.get("power", 1.0)))


SMALLEST = 1e-6
"""Added to absolute values before they are raised to a power, so that the gradient at 0 is finite."""


def signed_power(x: Tensor, power: float) -> Tensor:
    """Raise absolute values to a power and keep their signs (power normalisation, Perronnin et al., ECCV 2010).

    With 0.5 a few large features of a pretrained network no longer hide the many small ones.
    """
    if power == 1.0:
        return x
    return torch.sign(x) * ((x.abs() + SMALLEST) ** power - SMALLEST**power)


class PowerLinear(nn.Linear):
    """A linear layer of the features raised to a power: [N, C] -> [N, D]."""

    def __init__(self, source: int, target: int, kind: HeadKind):
        super().__init__(source, target, bias=kind.bias)
        self.power = kind.power

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(signed_power(x, self.power))


class ResidualHead(nn.Module):
    """A linear layer plus a two-layer MLP of the normalised features: [N, C] -> [N, D]. The MLP's output starts at zero."""

    def __init__(self, source: int, target: int, kind: HeadKind):
        """source, target: dimensions of the tower and of the shared space"""
        super().__init__()
        self.power = kind.power
        self.linear = nn.Linear(source, target, bias=kind.bias)
        self.norm = nn.LayerNorm(source)
        self.up, self.down = nn.Linear(source, kind.hidden), nn.Linear(kind.hidden, target)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = signed_power(x, self.power)
        return self.linear(x) + self.down(F.gelu(self.up(self.norm(x))))


def build_head(source: int, target: int, kind: HeadKind) -> nn.Module:
    """Create a head. Its weights are random, apart from the MLP's last layer, which is zero."""
    if kind.hidden:
        return ResidualHead(source, target, kind)
    return PowerLinear(source, target, kind) if kind.power != 1.0 else nn.Linear(source, target, bias=kind.bias)


def linear_layer(head: nn.Module) -> nn.Linear:
    """Return the linear layer of a head."""
    layer = head.linear if isinstance(head, ResidualHead) else head
    assert isinstance(layer, nn.Linear)
    return layer
