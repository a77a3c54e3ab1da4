"""Slices of the items of a batch: count items, take the inputs of some items, and keep random states for them."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.runtime.devices import get_rng_state, set_rng_state
from mmtune.runtime.distributed import Processes

SEGMENTS = "segments"
"""Name of an input tensor [W] with the item number of each of W windows. It is sorted, and every item has at least one window."""


class StepLoss(NamedTuple):
    """Value of the objective at one step, and the values of its terms by name."""

    loss: float
    logs: dict[str, float]


@dataclass(frozen=True)
class ItemCounts:
    """Numbers of unique items in a batch, by modality.

    own: items of this process
    run: items for which this process runs the tower; in lockstep this is the number of the process with the most items
    """

    own: dict[str, int]
    run: dict[str, int]

    @property
    def largest(self) -> int:
        """The largest number of items of any modality."""
        return max(self.run.values(), default=0)


def count_batch_items(batch: Batch, processes: Processes, lockstep: bool) -> ItemCounts:
    """Count the items of a batch whose inputs are the share of this process."""
    own = {m: n for m, inputs in batch.inputs.items() if (n := count_items(inputs))}
    if not lockstep:
        return ItemCounts(own, own)
    total = {m: int(items.max()) + 1 for m, items in batch.item_of_row.items() if m in own}
    first_rank = {m: processes.local_size(n, 0) for m, n in total.items()}  # rank 0 always has the largest share
    return ItemCounts({m: processes.local_size(n) for m, n in total.items()}, first_rank)


def count_items(inputs: Mapping[str, Tensor]) -> int:
    """Count the unique items in the inputs of one modality."""
    if SEGMENTS in inputs:
        segments = inputs[SEGMENTS]
        return int(segments[-1]) + 1 if len(segments) else 0
    return len(next(iter(inputs.values())))


def slice_inputs(inputs: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Return the inputs of items start to stop (exclusive) of one modality, with all their windows, numbered from 0 again."""
    if SEGMENTS not in inputs:
        return {k: v[start:stop] for k, v in inputs.items()}
    segments = inputs[SEGMENTS]
    a, b = torch.searchsorted(segments, torch.tensor([start, stop], device=segments.device)).tolist()
    return {k: v[a:b] - start if k == SEGMENTS else v[a:b] for k, v in inputs.items()}


def take_inputs(inputs: Mapping[str, Tensor], items: Tensor) -> dict[str, Tensor]:
    """Return the inputs of these items of one modality, with all their windows, numbered from 0 again. items: int64 [n], ascending"""
    if SEGMENTS not in inputs:
        return {k: v[items.to(v.device)] for k, v in inputs.items()}
    segments = inputs[SEGMENTS]
    wanted = torch.isin(segments, items.to(segments.device))
    rows = wanted.nonzero()[:, 0]
    numbers = torch.unique_consecutive(segments[rows], return_inverse=True)[1]
    return {k: numbers if k == SEGMENTS else v[rows.to(v.device)] for k, v in inputs.items()}


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The inputs on `device`; tensors that are there already are not copied."""
    return {k: v.to(device, non_blocking=device.type == "cuda" and v.is_pinned()) for k, v in inputs.items()}


class RandomStates:
    """Saved states of the random number generators of the CPU and one accelerator, so that dropout can be repeated."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state().repeat(count, 1)
        state = get_rng_state(device)
        self.accelerator = None if state is None else state.repeat(count, 1)

    def save(self, number: int) -> None:
        """Save the current state as `number`."""
        self.cpu[number] = torch.get_rng_state()
        state = get_rng_state(self.device)
        if self.accelerator is not None and state is not None:
            self.accelerator[number] = state

    def restore(self, number: int) -> None:
        """Restore the state that was saved as `number`."""
        # clone: torch reads the state from the start of the tensor's memory, so a row view would give the wrong state
        torch.set_rng_state(self.cpu[number].clone())
        if self.accelerator is not None:
            set_rng_state(self.device, self.accelerator[number].clone())


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Context manager in which BatchNorm layers normalise as before, but do not update their running statistics."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m, m.momentum, m.num_batches_tracked.clone() if m.num_batches_tracked is not None else None) for m in layers]
    for m in layers:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum, count in before:
            m.momentum = momentum
            if count is not None and m.num_batches_tracked is not None:
                m.num_batches_tracked.copy_(count)
