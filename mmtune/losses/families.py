"""The three families of losses, and the check of what a loss returns.

The family of a loss is an attribute that its decorator sets, so that it depends on no name or annotation of its parameters.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mmtune.errors import TrainingError

LossFamily: TypeAlias = Literal["contrastive", "scored_pairs", "distillation"]
LossFunction: TypeAlias = Callable[..., Tensor]
"""A decorated loss: its family's input, then keyword-only options -> [R] for a contrastive loss, else a scalar."""

_ATTRIBUTE = "loss_family"


def contrastive_loss(function: LossFunction) -> LossFunction:
    """Decorate a loss that takes a `ContrastiveBlock` and returns one value a query [R]."""
    return _mark(function, "contrastive")


def scored_pairs_loss(function: LossFunction) -> LossFunction:
    """Decorate a loss that takes `ScoredPairs` and returns a scalar."""
    return _mark(function, "scored_pairs")


def distillation_loss(function: LossFunction) -> LossFunction:
    """Decorate a loss that takes a `DistillationBlock` and returns a scalar."""
    return _mark(function, "distillation")


def _mark(function: LossFunction, family: LossFamily) -> LossFunction:
    setattr(function, _ATTRIBUTE, family)
    return function


def family_of(function: object) -> LossFamily | None:
    """The family that a loss was decorated with; None for a function that is no loss."""
    return getattr(function, _ATTRIBUTE, None)


def check_output(name: str, value: object, shape: tuple[int, ...], similarity: Tensor, counted: Tensor | None = None) -> None:
    """Refuse what a loss must not return: no tensor, another shape than `shape`, no floating dtype, a value that is not
    finite where the similarities it was given are. counted [R]: the queries whose value is used, None for all.

    Raises TrainingError naming the loss.
    """
    wanted = f"a float tensor [{', '.join(map(str, shape))}]" if shape else "a scalar float tensor"
    if not isinstance(value, Tensor):
        raise TrainingError(f"loss {name} returned {type(value).__name__}; it must return {wanted}")
    if tuple(value.shape) != shape or not value.is_floating_point():
        raise TrainingError(f"loss {name} returned {value.dtype} {list(value.shape)}; it must return {wanted}")
    used = value if counted is None else value[counted]
    if not bool(torch.isfinite(used).all()) and bool(torch.isfinite(similarity).all()):
        at = int(torch.nonzero(~torch.isfinite(used.flatten()))[0])
        raise TrainingError(f"loss {name} returned {float(used.flatten()[at])} for finite similarities; see its formula")
