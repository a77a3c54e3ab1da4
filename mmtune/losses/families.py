"""The families of losses, and the check of a loss function's return value.

The decorator stores the family as an attribute of the function. So the names and annotations of its parameters do not matter.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from mmtune.errors import TrainingError

LossFamily: TypeAlias = Literal["contrastive", "scored_pairs", "distillation", "class_label"]
LossFunction: TypeAlias = Callable[..., Tensor]
"""A decorated loss. It takes its family's input and keyword-only options; contrastive losses return [R], the others a scalar."""

LossClass = TypeVar("LossClass", bound=type[nn.Module])

_ATTRIBUTE = "loss_family"


def contrastive_loss(function: LossFunction) -> LossFunction:
    """Mark a function as a loss that takes a `ContrastiveBlock` and returns one value per query [R]."""
    return _mark(function, "contrastive")


def scored_pairs_loss(function: LossFunction) -> LossFunction:
    """Mark a function as a loss that takes `ScoredPairs` and returns a scalar."""
    return _mark(function, "scored_pairs")


def distillation_loss(function: LossFunction) -> LossFunction:
    """Mark a function as a loss that takes a `DistillationBlock` and returns a scalar."""
    return _mark(function, "distillation")


def class_label_loss(cls: LossClass) -> LossClass:
    """Mark a class of torch modules as a loss that takes embeddings [N, D] and class numbers [N] and returns a scalar.

    The arguments `num_classes` and `embedding_size` of its constructor are counted, the others are options. Its parameters, such
    as class proxies, are trained with the recipe's `proxy_lr`. With a miner, `forward` gets the miner's result as a third argument.
    """
    setattr(cls, _ATTRIBUTE, "class_label")
    return cls


def _mark(function: LossFunction, family: LossFamily) -> LossFunction:
    setattr(function, _ATTRIBUTE, family)
    return function


def family_of(function: object) -> LossFamily | None:
    """Return the family that a loss was decorated with, or None for a function without a decorator."""
    return getattr(function, _ATTRIBUTE, None)


def check_output(name: str, value: object, shape: tuple[int, ...], similarity: Tensor, counted: Tensor | None = None) -> None:
    """Raise TrainingError, with the loss's name, unless `value` is a floating-point tensor of `shape`.

    If all similarities are finite, all values that are used must be finite as well.

    counted: bool mask [R] of the queries whose values are used; None means all queries.
    """
    wanted = f"a float tensor [{', '.join(map(str, shape))}]" if shape else "a scalar float tensor"
    if not isinstance(value, Tensor):
        raise TrainingError(f"loss {name} returned {type(value).__name__}; it must return {wanted}")
    if tuple(value.shape) != shape or not value.is_floating_point():
        raise TrainingError(f"loss {name} returned {value.dtype} {list(value.shape)}; it must return {wanted}")
    used = value if counted is None else value[counted]
    if not bool(torch.isfinite(used).all()) and bool(torch.isfinite(similarity).all()):
        at = int(torch.nonzero(~torch.isfinite(used.flatten()))[0])
        raise TrainingError(
            f"loss {name} returned {float(used.flatten()[at])} although all similarities are finite; check its formula"
        )
