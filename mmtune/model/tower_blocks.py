"""Find the residual blocks of a tower of any library.

A block is an element of an `nn.ModuleList` or `nn.Sequential` that itself contains modules other than the
parametrizations of its own weights (weight normalisation).
"""

from collections.abc import Iterable

from torch import nn

PARTS_OF_A_BLOCK = ("FocalModulation", "FocalNetModulation")
"""Classes whose lists are parallel branches inside a block, not blocks: FocalNet's in timm and transformers."""


def blocks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the residual blocks of a tower, first to last. If lists are nested (stages of blocks), the innermost count."""
    found: list[nn.Module] = []
    for module in modules:
        for child in module.children():
            inner = [] if type(child).__name__ in PARTS_OF_A_BLOCK else blocks([child])
            if inner:
                found += inner
            elif isinstance(child, nn.TransformerEncoderLayer):
                found.append(child)
            elif isinstance(module, nn.ModuleList | nn.Sequential) and any(
                n != "parametrizations" for n, _ in child.named_children()
            ):
                found.append(child)
    return found
