"""Find the layers of a tower that LoRA adapts: linear layers, 1 x 1 convolutions and fused attention weights of its blocks."""

from dataclasses import dataclass

from torch import nn

from mmtune.errors import RecipeError
from mmtune.model.tower_blocks import blocks
from mmtune.training.tuning.lora_fused_attention import attention_name, fused_projection_name


@dataclass
class LoraTargets:
    """Names of what LoRA adapts inside `module`.

    layers: names of layers
    parameters: names of fused attention parameters ("....in_proj_weight")
    """

    module: nn.Module
    layers: list[str]
    parameters: list[str]

    def matching(self, suffixes: list[str]) -> "LoraTargets":
        """Return the targets whose name ends with one of `suffixes`. For a fused parameter, its attention module's name counts."""
        layers = [n for n in self.layers if any(_ends_with(n, s) for s in suffixes)]
        parameters = [n for n in self.parameters if any(_ends_with(attention_name(n), s) for s in suffixes)]
        return LoraTargets(self.module, layers, parameters)

    @property
    def names(self) -> list[str]:
        """Names of the adapted modules. A fused parameter is represented by its attention module."""
        return [*self.layers, *(attention_name(n) for n in self.parameters)]


def find_targets(tower: list[nn.Module], suffixes: list[str] | None, key: str) -> list[LoraTargets]:
    """Find the layers of a tower that LoRA adapts.

    Raises RecipeError, with the names of possible targets, if a suffix matches nothing.

    suffixes: endings of layer names, for example ["q_proj", "v_proj"]; None means all layers of the blocks that can be adapted
    key: the recipe key, for messages
    """
    found = [t for module in tower if (t := _all_targets(module)).names]
    if not found:
        raise RecipeError(f"{key}: this tower has no blocks with layers for adapters; use how: full, partial or head instead")
    if suffixes is None:
        return found
    if not suffixes:
        raise RecipeError(f"{key}.targets: an empty list adapts nothing; omit this key to adapt all layers of the blocks")
    for suffix in suffixes:
        if not any(t.matching([suffix]).names for t in found):
            known = ", ".join(sorted({n.rsplit(".", 1)[-1] for t in found for n in t.names}))
            raise RecipeError(
                f"{key}.targets: {suffix!r} matches no layer in the blocks of this tower; possible names: {known}"
            )
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
