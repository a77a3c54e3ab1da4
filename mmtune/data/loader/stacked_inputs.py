"""Inputs of many items as a few large tensors, for the way from a worker process to the main process.

A tensor that is passed between processes needs a file of its own in shared memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

K = TypeVar("K")


@dataclass
class StackedInputs(Generic[K]):
    """The inputs of items, stacked by shape.

    groups: for each set of shapes, the items, and {name of the tensor: tensor with the items as first axis}
    order: the items in their order
    """

    groups: list[tuple[list[K], dict[str, Tensor]]]
    order: list[K]

    @classmethod
    def stack(cls, inputs: Mapping[K, Mapping[str, Tensor]]) -> "StackedInputs[K]":
        """Stack {item: {name: tensor}}."""
        by_shape: dict[object, list[K]] = {}
        for item, tensors in inputs.items():
            by_shape.setdefault(tuple((n, t.dtype, tuple(t.shape)) for n, t in tensors.items()), []).append(item)
        groups = [
            (items, {n: torch.stack([inputs[i][n] for i in items]) for n in inputs[items[0]]}) for items in by_shape.values()
        ]
        return cls(groups, list(inputs))

    def unstack(self) -> dict[K, dict[str, Tensor]]:
        """Return {item: {name: tensor}} as it was given to `stack`. The tensors are views."""
        found = {item: {n: t[i] for n, t in tensors.items()} for items, tensors in self.groups for i, item in enumerate(items)}
        return {item: found[item] for item in self.order}
