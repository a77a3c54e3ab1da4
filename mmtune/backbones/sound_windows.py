"""Cut long sounds into windows. The windows of a sound depend on nothing but its length, except in training."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_WINDOWS = 128
"""Windows of one sound; bounds the memory that a very long sound takes."""


def window_starts(length: int, window: int, rng: random.Random | None) -> list[int]:
    """Return the first sample of each window of a sound.

    Without `rng`, at most MAX_WINDOWS evenly spaced windows cover the sound. With `rng`, which is given in training, there is
    one random window.

    length, window: length of the sound and of a window, in samples
    """
    over = length - window
    if over <= 0:
        return [0]
    if rng is not None:
        return [rng.randint(0, over)]
    count = min(MAX_WINDOWS, -(-length // window))
    return [round(i * over / (count - 1)) for i in range(count)]


def collate_windows(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the windows of several items, and add "segments" if an item has several windows (see `Preprocess`).

    items: the tensors of each item, whose first axis is the window; they have the same keys
    """
    inputs = {k: torch.cat([i[k] for i in items]) for k in items[0]}
    counts = torch.tensor([len(next(iter(i.values()))) for i in items])
    return inputs | segments_of(counts)


def segments_of(counts: Tensor) -> dict[str, Tensor]:
    """Return {"segments": the item index of each window}, or {} if every item has one window.

    counts: int [N], the number of windows of each item
    """
    if int(counts.sum()) == len(counts):
        return {}
    return {"segments": torch.repeat_interleave(torch.arange(len(counts)), counts)}
