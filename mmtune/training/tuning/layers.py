"""What a tower is made of, for whoever trains a part of it: blocks in order, a parameter's depth, what may change.

Nothing here knows a family: a block is an element of a module list that has modules of its own.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

EARLY = ("embed", "conv1", "stem", "patch", "ln_pre", "pre_l", "batch_norm")
"""In the names of parameters that work before the first block, wherever a library defines them."""
LATE = ("proj", "head")


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


def depths(modules: Iterable[nn.Module]) -> tuple[dict[int, int], int]:
    """(id of a parameter -> its layer, number of blocks L): 0 before the blocks, 1..L the blocks, L+1 what follows them.

    What stands between two blocks counts with the later one.
    """
    modules = list(modules)
    ordered = blocks(modules)
    block = {id(p): i + 1 for i, b in enumerate(ordered) for p in b.parameters()}
    layer: dict[int, int] = {}
    for module in modules:
        own = [block[id(p)] for p in module.parameters() if id(p) in block]
        now = 0
        for name, p in module.named_parameters():
            if id(p) in block:
                now = layer[id(p)] = block[id(p)]
            elif isinstance(module, nn.Embedding) or any(w in name.lower() for w in EARLY):
                layer[id(p)] = 0
            elif not own or "." not in name and any(w in name.lower() for w in LATE):
                layer[id(p)] = len(ordered) + 1
            else:
                layer[id(p)] = now and now + 1 if now < max(own) else max(own) + 1
    return layer, len(ordered)


def norm_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Gains and biases of every normalisation layer."""
    return [p for top in modules for m in top.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)]


def rest_in_eval(model: nn.Module) -> None:
    """After `model.train()`: what does not learn behaves as when it is served. No dropout where nothing inside is trained, no
    moving statistics in a BatchNorm whose gain is frozen."""
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


def frozen_names(model: nn.Module) -> list[str]:
    """Names of the parameters that do not learn."""
    return [n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad]


def learning_state(model: nn.Module) -> dict[str, Any]:
    """The state dict without what is frozen: all that a checkpoint of a run on a known base needs."""
    frozen = tuple(frozen_names(model))
    kept = set(frozen)
    inside = tuple(f"{n}." for n in frozen)  # a quantised weight's companions
    return {k: v for k, v in model.state_dict().items() if k not in kept and not k.startswith(inside)}


def load_learning_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Undo `learning_state`. RuntimeError when anything but frozen parameters is missing, or anything is too much."""
    frozen = frozen_names(model)
    if not frozen:
        model.load_state_dict(state)
        return
    expected = learning_state(model).keys()
    wrong = sorted(expected ^ state.keys())
    if wrong:
        raise RuntimeError(f"the checkpoint is of another `tune`: {wrong[0]} and {len(wrong) - 1} more are not in both")
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name, value in state.items():
            tensors[name].copy_(value)


def plain_copy(model: "Model") -> dict[str, Tensor]:
    """The state dict, copied to the CPU."""
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


def forget_fingerprint(model: "Model") -> None:
    """Weights were changed behind the model's back: its name is to be computed anew."""
    model.train().eval()
