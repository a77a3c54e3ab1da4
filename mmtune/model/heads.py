"""Heads: the layers between a tower and the shared space."""

from dataclasses import asdict, dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.contracts import JsonObject


@dataclass(frozen=True)
class HeadKind:
    """The structure of a head that is not a linear layer without bias.

    bias: whether the linear layer has a bias
    hidden: width of the hidden layer of the residual MLP; 0 means that there is no MLP
    """

    bias: bool = False
    hidden: int = 0

    def to_json(self) -> JsonObject:
        """Convert to the JSON object that is stored in a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: JsonObject) -> "HeadKind":
        """Read a head from a manifest. Raises KeyError, TypeError or ValueError if the document is not valid."""
        return cls(bool(document["bias"]), int(document["hidden"]))


class ResidualHead(nn.Module):
    """A linear layer plus a two-layer MLP of the normalised features: [N, C] -> [N, D]. The MLP's output starts at zero."""

    def __init__(self, source: int, target: int, kind: HeadKind):
        """source, target: dimensions of the tower and of the shared space"""
        super().__init__()
        self.linear = nn.Linear(source, target, bias=kind.bias)
        self.norm = nn.LayerNorm(source)
        self.up, self.down = nn.Linear(source, kind.hidden), nn.Linear(kind.hidden, target)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.down(F.gelu(self.up(self.norm(x))))


def build_head(source: int, target: int, kind: HeadKind) -> nn.Module:
    """Create a head. Its weights are random, apart from the MLP's last layer, which is zero."""
    return ResidualHead(source, target, kind) if kind.hidden else nn.Linear(source, target, bias=kind.bias)


def linear_layer(head: nn.Module) -> nn.Linear:
    """Return the linear layer of a head."""
    layer = head.linear if isinstance(head, ResidualHead) else head
    assert isinstance(layer, nn.Linear)
    return layer
