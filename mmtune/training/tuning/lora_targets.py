"""Which layers of a tower LoRA adapts: the linear layers, 1 x 1 convolutions and fused attention projections of its blocks."""

from dataclasses import dataclass

from torch import nn

from mmtune.errors import RecipeError
from mmtune.training.tuning.layers import blocks
from mmtune.training.tuning.lora_fused_attention import attention_name, fused_projection_name


@dataclass
class LoraTargets:
    """Names inside `module`: layers to adapt, and fused attention parameters ("....in_proj_weight")."""

    module: nn.Module
    layers: list[str]
    parameters: list[str]

    def matching(self, suffixes: list[str]) -> "LoraTargets":
        """The targets whose name ends with one of `suffixes`; a fused parameter has the name of its attention module."""
        layers = [n for n in self.layers if any(_ends_with(n, s) for s in suffixes)]
        parameters = [n for n in self.parameters if any(_ends_with(attention_name(n), s) for s in suffixes)]
        return LoraTargets(self.module, layers, parameters)

    @property
    def names(self) -> list[str]:
        """Names of the adapted modules."""
        return [*self.layers, *(attention_name(n) for n in self.parameters)]


def find_targets(tower: list[nn.Module], suffixes: list[str] | None, key: str) -> list[LoraTargets]:
    """What LoRA adapts in a tower: all that it can in the blocks, or what ends with one of `suffixes` (["q_proj", "v_proj"]).

    key: the recipe key, for messages. Raises RecipeError when nothing matches, naming what there is.
    """
    found = [t for module in tower if (t := _all_targets(module)).names]
    if not found:
        raise RecipeError(f"{key}: this tower has no blocks with layers for adapters; tune it full, partial or head instead")
    if suffixes is None:
        return found
    if not suffixes:
        raise RecipeError(f"{key}.targets: an empty list adapts nothing; leave it out for all layers of the blocks")
    for suffix in suffixes:
        if not any(t.matching([suffix]).names for t in found):
            known = ", ".join(sorted({n.rsplit(".", 1)[-1] for t in found for n in t.names}))
            raise RecipeError(f"{key}.targets: {suffix!r} matches no layer of this tower's blocks; there are: {known}")
    return [t for t in (t.matching(suffixes) for t in found) if t.names]


def _all_targets(module: nn.Module) -> LoraTargets:
    names = {id(m): n for n, m in module.named_modules()}
    targets, in_attention = LoraTargets(module, [], []), set[int]()
    for block in blocks([module]):
        for m in block.modules():
            if isinstance(m, nn.MultiheadAttention):
                in_attention |= {id(x) for x in m.modules()}
                targets.parameters.append(fused_projection_name(names[id(m)]))
            elif id(m) not in in_attention and (isinstance(m, nn.Linear) or _is_pointwise(m)):
                targets.layers.append(names[id(m)])
    return targets


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")
