"""The structure of a tower for partial tuning: its blocks in order, the layer of each parameter, and frozen parameters.

Nothing depends on a specific library. Blocks are found by `mmtune.model.tower_blocks`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmtune.model.tower_blocks import blocks

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

BEFORE_BLOCKS = ("embed", "conv1", "stem", "patch", "ln_pre", "pre_l", "batch_norm")
"""Parts of the names of parameters that are applied before the first block, wherever a library defines them."""
AFTER_BLOCKS = ("proj", "head")
"""Parts of the names of top-level parameters that are applied after the last block."""


def layer_numbers(modules: Iterable[nn.Module]) -> tuple[dict[int, int], int]:
    """Return ({id of a parameter: its layer}, number of blocks L). Layers are 0 before the blocks, 1 to L, and L + 1 after.

    A parameter between two blocks gets the layer of the later block, one that several blocks share that of the first.
    """
    modules = list(modules)
    ordered = blocks(modules)
    block = {id(p): i + 1 for i, b in reversed(list(enumerate(ordered))) for p in b.parameters()}
    layer: dict[int, int] = {}
    for module in modules:
        own_blocks = [block[id(p)] for p in module.parameters() if id(p) in block]
        current = 0
        for name, p in module.named_parameters():
            if id(p) in block:
                current = layer[id(p)] = block[id(p)]
            elif isinstance(module, nn.Embedding) or any(part in name.lower() for part in BEFORE_BLOCKS):
                layer[id(p)] = 0
            elif not own_blocks or "." not in name and any(part in name.lower() for part in AFTER_BLOCKS):
                layer[id(p)] = len(ordered) + 1
            else:
                layer[id(p)] = current and current + 1 if current < max(own_blocks) else max(own_blocks) + 1
    return layer, len(ordered)


def norm_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the weights and biases of all normalisation layers."""
    return [p for top in modules for m in top.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)]


def set_frozen_to_eval(model: nn.Module) -> None:
    """Set modules whose parameters are all frozen to evaluation mode. Call it after `model.train()`.

    They then have no dropout, and frozen BatchNorm layers do not update their running statistics.
    """
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def frozen_names(model: nn.Module) -> list[str]:
    """Names of the frozen parameters."""
    return [n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad]


def learning_state(model: nn.Module) -> dict[str, Any]:
    """Return the state dict without frozen parameters. A checkpoint needs no more, because the base model is known."""
    frozen = tuple(frozen_names(model))
    names = set(frozen)
    companions = tuple(f"{n}." for n in frozen)  # prefixes of the extra tensors that a 4-bit weight stores
    return {k: v for k, v in model.state_dict().items() if k not in names and not k.startswith(companions)}


def load_learning_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the result of `learning_state`.

    Raises RuntimeError unless `state` has exactly the tensors that are not frozen in this model.
    """
    frozen = frozen_names(model)
    if not frozen:
        model.load_state_dict(state)
        return
    expected = learning_state(model).keys()
    different = sorted(expected ^ state.keys())
    if different:
        raise RuntimeError(
            f"the checkpoint was saved with another `tune`: {different[0]} and {len(different) - 1} more tensors do not match"
        )
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name, value in state.items():
            tensors[name].copy_(value)


def copy_state_to_cpu(model: "Model") -> dict[str, Tensor]:
    """Return a copy of the state dict on the CPU."""
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


def recompute_fingerprint(model: "Model") -> None:
    """Drop the cached fingerprint and switch to eval mode. Call it after writing to the weights directly."""
    model.invalidate_fingerprint()
    model.eval()
