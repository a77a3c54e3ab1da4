"""Long signals in bounded memory: their windows are collated and encoded in groups, with the vectors of all at once.

A recording of an hour is 128 windows for a tower, and a batch of 64 of them 8,192.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from mmtune.contracts import Preprocess, Signal

if TYPE_CHECKING:
    from torch import Tensor

MAX_BATCH_WINDOWS = 128
"""Windows that are collated at a time, where signals have several."""
MAX_FORWARD_WINDOWS = 64
"""Windows in one forward pass without gradient, where signals have several."""


def preprocess_in_groups(
    signals: Iterable[Callable[[], Signal]], preprocess: Preprocess, size: int
) -> "Iterator[list[dict[str, Tensor]]]":
    """Preprocessed items of at most `size` signals, in their order, in groups that end where their windows reach
    MAX_BATCH_WINDOWS (or `size`, if that is more). One group where preprocessing cuts no windows (`Preprocess.windows`)."""
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
    """encode(inputs), for inputs of more windows than `items`: without gradient in groups of MAX_FORWARD_WINDOWS (or `items`, if
    that is more) windows each, whose results are concatenated."""
    total, size = len(next(iter(inputs.values()))), max(items, MAX_FORWARD_WINDOWS)
    if torch.is_grad_enabled() or total <= size:
        return encode(dict(inputs))
    starts = range(0, total, size)
    return torch.cat([encode({k: v[start : start + size] for k, v in inputs.items()}) for start in starts])
