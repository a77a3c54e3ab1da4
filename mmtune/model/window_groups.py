"""Limit the memory for long values by processing their windows in groups. The embeddings are the same as without groups.

A long recording can have 128 windows, so a batch of 64 recordings can have 8192.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from mmtune.contracts import Preprocess, Signal

if TYPE_CHECKING:
    from torch import Tensor

MAX_BATCH_WINDOWS = 128
"""Windows to collate at a time, if values have several windows."""
MAX_FORWARD_WINDOWS = 64
"""Windows in one forward pass without gradient, if values have several windows."""


def preprocess_in_groups(
    signals: Iterable[Callable[[], Signal]], preprocess: Preprocess, size: int
) -> "Iterator[list[dict[str, Tensor]]]":
    """Preprocess signals and yield the items in groups, in their order.

    A group ends as soon as its items have MAX_BATCH_WINDOWS windows, or `size` windows if that is more. If the preprocessing
    does not cut signals into windows (it has no method `windows`), all items are in one group.

    signals: functions that each return one decoded value
    preprocess: the tower's preprocessing
    size: the maximum number of signals
    """
    count = getattr(preprocess, "windows", None)
    group: list[dict[str, Tensor]] = []
    windows = 0
    for signal in signals:
        group.append(preprocess(signal()))
        windows += count(group[-1]) if count else 1
        if windows >= max(size, MAX_BATCH_WINDOWS):
            yield group
            group, windows = [], 0
    if group:
        yield group


def encode_in_groups(encode: "Callable[[dict[str, Tensor]], Tensor]", inputs: "Mapping[str, Tensor]", items: int) -> "Tensor":
    """Call `encode` on the windows of a batch and return the concatenated embeddings.

    With gradients, or if there are few windows, `encode` is called once. Otherwise it is called on groups of
    MAX_FORWARD_WINDOWS windows each, or of `items` windows if that is more.

    inputs: the tower's input tensors, whose first axis is the window
    items: number of items that the windows belong to
    """
    total, size = len(next(iter(inputs.values()))), max(items, MAX_FORWARD_WINDOWS)
    if torch.is_grad_enabled() or total <= size:
        return encode(dict(inputs))
    starts = range(0, total, size)
    return torch.cat([encode({k: v[start : start + size] for k, v in inputs.items()}) for start in starts])
