"""Cut long sounds into windows. The windows of a sound depend on nothing but its length, except in training."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmtune.modalities.sound import Sound

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


class Windowed:
    """What preprocessing that cuts long sounds into windows has in common (see `Preprocess`)."""

    def __init__(self, name: str, rate: int, window: int):
        """name: of the input tensor, [windows, ...]; rate: samples per second; window: longest window, in samples"""
        self.name, self.rate, self.window = name, rate, window

    def is_deterministic(self, signal: Sound) -> bool:
        """Whether preprocessing is deterministic in training, so that its result can be cached: not for a sound with several
        windows, which gives a new random window in each epoch."""
        return signal.seconds * self.rate <= self.window

    @property
    def window_seconds(self) -> float:
        """Length of the tower's window."""
        return self.window / self.rate

    def windows(self, item: dict[str, Tensor]) -> int:
        """Return the number of windows of a preprocessed item."""
        return len(item[self.name])


class VariableWindows(Windowed, ABC):
    """Turn one sound into {NAME: [samples or frames of each window]}; shorter windows of a batch are padded at the end.

    A subclass says what becomes of one window's samples. A sound that is not longer than the window is one window of its own length.
    """

    @abstractmethod
    def _prepared(self, samples: np.ndarray) -> Tensor:
        """Return the tower's input for the samples [N] of one window: [N] or [frames, ...]."""

    def __call__(self, signal: Sound, rng: random.Random | None = None) -> dict[str, Tensor]:
        samples = signal.resampled(self.rate).samples
        starts = window_starts(len(samples), self.window, rng)
        parts = [self._prepared(samples[s : s + self.window]) for s in starts]
        return {self.name: torch.stack(parts)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        rows = [row for item in items for row in item[self.name]]
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(item[self.name]) for item in items])
        return {self.name: padded, "lengths": lengths} | segments_of(counts)

    def lengths(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Number of samples or frames of each window (see `Preprocess`)."""
        return inputs.get("lengths")

    def cut(self, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
        """The inputs without the samples or frames after `length`."""
        return {k: v[:, :length] if k == self.name else v for k, v in inputs.items()}


def encode_by_length(encode: Callable[[Tensor], Tensor], values: Tensor, lengths: Tensor) -> Tensor:
    """Encode windows of several lengths, each length on its own and without padding: [W, dim].

    encode: maps windows of one length [w, length, ...] to embeddings [w, dim]
    values: padded windows [W, longest, ...]
    lengths: int [W]
    """
    parts: list[tuple[Tensor, Tensor]] = []  # (rows, their embeddings)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        parts.append((rows, encode(values[rows, :length])))
    return torch.cat([embeddings for _, embeddings in parts])[torch.cat([rows for rows, _ in parts]).argsort()]
