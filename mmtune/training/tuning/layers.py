"""The structure of a tower for partial tuning: its blocks in order, the layer of each parameter, what is frozen.

Nothing here depends on a family: a block is an element of a module list that has modules of its own.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

BEFORE_BLOCKS = ("embed", "conv1", "stem", "patch", "ln_pre", "pre_l", "batch_norm")
"""Parts of the names of parameters that are applied before the first block, wherever a library defines them."""
AFTER_BLOCKS = ("proj", "head")


def blocks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The residual blocks of a tower, first to last; of nested lists (stages of blocks) the innermost."""
    found: list[nn.Module] = []
    for module in modules:
        for child in module.children():
            inner = blocks([child])
            if inner:
                found += inner
            elif isinstance(child, nn.TransformerEncoderLayer):
                found.append(child)
            elif isinstance(module, nn.ModuleList | nn.Sequential) and any(True for _ in child.children()):
                found.append(child)
    return found


def layer_numbers(modules: Iterable[nn.Module]) -> tuple[dict[int, int], int]:
    """(id of a parameter -> its layer, number of blocks L): 0 before the blocks, 1..L the blocks, L + 1 after them.

    A parameter between two blocks belongs to the later one's layer.
    """
    modules = list(modules)
    ordered = blocks(modules)
    block = {id(p): i + 1 for i, b in enumerate(ordered) for p in b.parameters()}
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
    """Weights and biases of every normalisation layer."""
    return [p for top in modules for m in top.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)]


def set_frozen_to_eval(model: nn.Module) -> None:
    """Call after `model.train()`: modules without a parameter that learns behave as in inference, so that they have no dropout,
    and BatchNorm layers with frozen weights do not update their statistics."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def frozen_names(model: nn.Module) -> list[str]:
    """Names of the parameters that do not learn."""
    return [n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad]


def learning_state(model: nn.Module) -> dict[str, Any]:
    """The state dict without frozen parameters: all that a checkpoint of a run on a known base needs."""
    frozen = tuple(frozen_names(model))
    names = set(frozen)
    companions = tuple(f"{n}." for n in frozen)  # what a quantised weight stores beside itself
    return {k: v for k, v in model.state_dict().items() if k not in names and not k.startswith(companions)}


def load_learning_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load `learning_state`. RuntimeError when other tensors than those of the frozen parameters are missing, or there are
    more."""
    frozen = frozen_names(model)
    if not frozen:
        model.load_state_dict(state)
        return
    expected = learning_state(model).keys()
    different = sorted(expected ^ state.keys())
    if different:
        raise RuntimeError(f"the checkpoint is of another `tune`: {different[0]} and {len(different) - 1} more are not in both")
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name, value in state.items():
            tensors[name].copy_(value)


def copy_state_to_cpu(model: "Model") -> dict[str, Tensor]:
    """The state dict, copied to the CPU."""
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


def recompute_fingerprint(model: "Model") -> None:
    """Call after writing to the weights directly: the model's fingerprint is computed again when it is next read."""
    model.train().eval()
