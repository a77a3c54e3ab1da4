"""Divide the items of a batch into micro-batches: parts that are encoded in one forward pass.

By default a micro-batch is a number of items in the order of the batch. Inputs of unlike length (texts, sounds) are padded to the
longest of their batch, and most of what a tower computes for short ones is padding. So items can be sorted by length first, and each
micro-batch is cut to the length of its own longest item (uniform-length batching, as sentence-transformers does when it encodes).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmtune import modalities
from mmtune.backbones import Tower
from mmtune.contracts import Batch, modality_of_view
from mmtune.runtime.distributed import Processes
from mmtune.training.large_batch.item_slices import (
    SEGMENTS,
    ItemCounts,
    RandomStates,
    frozen_running_statistics,
    slice_inputs,
    take_inputs,
    to_device,
)

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

TokenBudget: TypeAlias = int | Mapping[str, int] | None
"""The recipe key `train.micro_batch_tokens`: for all modalities with lengths, or {modality: number}."""
CUT_POINTS = 256
"""Lengths at which buckets may end; with more lengths in a batch, only so many of them are tried."""


class Limits(NamedTuple):
    """How a batch is divided; the recipe keys of the same names.

    micro_batch_size: items of a micro-batch; None: no limit
    micro_batch_tokens: positions of a micro-batch, padding included: rows x longest row
    length_buckets: number of micro-batches of like length; these stay in one graph, without gradient caching
    """

    micro_batch_size: int | None = None
    micro_batch_tokens: TokenBudget = None
    length_buckets: int | None = None

    @property
    def caches_gradients(self) -> bool:
        """Whether a batch with several micro-batches is trained by gradient caching."""
        return self.micro_batch_size is not None or self.micro_batch_tokens is not None

    def tokens_of(self, modality: str) -> int | None:
        """The token budget of a modality."""
        tokens = self.micro_batch_tokens
        return tokens.get(modality) if isinstance(tokens, Mapping) else tokens


@dataclass(frozen=True)
class MicroBatch:
    """Items of one modality that are encoded in one forward pass.

    modality: the key of `Batch.inputs`
    items: numbers of the items: a slice, or int64 [n] if they were sorted. If there are none, the first item of the process is
        encoded with a gradient of zero, because in lockstep the other processes wait for it
    length: length that the inputs are cut to; None: that of the batch
    """

    modality: str
    items: slice | Tensor
    length: int | None = None

    def __len__(self) -> int:
        return len(self.items) if isinstance(self.items, Tensor) else self.items.stop - self.items.start

    def inputs(self, model: "Model", batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Copy the inputs of these items, and of no others, to `device`; without the padding that only longer items need."""
        inputs = batch.inputs[self.modality]
        if isinstance(self.items, slice):
            return to_device(slice_inputs(inputs, self.items.start, self.items.stop), device)
        part = take_inputs(inputs, self.items)
        if self.length is not None:
            part = model.towers[modality_of_view(self.modality)].preprocess.cut(part, self.length)  # type: ignore[attr-defined]
        return to_device(part, device)

    def numbers(self, device: torch.device) -> slice | Tensor:
        """`items` as an index of tensors on `device`."""
        return self.items.to(device) if isinstance(self.items, Tensor) else self.items


def divide_batch(
    model: "Model", batch: Batch, counts: ItemCounts, limits: Limits, processes: Processes, lockstep: bool
) -> list[MicroBatch]:
    """Divide the items of this process into micro-batches, in the order of modalities. A collective in lockstep with a token budget.

    lockstep: every process gets as many micro-batches of a modality as the one with the most; the last ones may be empty
    """
    parts: list[MicroBatch] = []
    for m, n in counts.run.items():
        of_modality = _of_modality(model, batch, m, counts.own[m], n, limits)
        if lockstep and limits.micro_batch_tokens is not None:
            number = torch.tensor([len(of_modality)], device=batch.is_query.device)
            most = int(processes.gather(number, processes.world_size).max())
            of_modality += [MicroBatch(m, slice(counts.own[m], counts.own[m]))] * (most - len(of_modality))
        parts += of_modality
    return parts


def _of_modality(model: "Model", batch: Batch, m: str, own: int, run: int, limits: Limits) -> list[MicroBatch]:
    """Divide the items of one modality. own, run: as in `ItemCounts`"""
    tokens = limits.tokens_of(modality_of_view(m))
    lengths = item_lengths(model, m, batch.inputs[m]) if tokens or limits.length_buckets else None
    if lengths is None or own == 0:
        size = limits.micro_batch_size or max(run, 1)
        return [MicroBatch(m, slice(min(i, own), min(i + size, own))) for i in range(0, run, size)]
    order = torch.argsort(lengths.longest, descending=True, stable=True)  # what needs the most memory comes first
    longest, rows = lengths.longest[order].numpy(), lengths.rows[order].numpy()
    if tokens:
        starts = cuts_by_tokens(longest, rows, tokens, limits.micro_batch_size)
    else:
        starts = cuts_by_length(longest, rows, limits.length_buckets or 1)
    ends = [*starts[1:], own]
    return [MicroBatch(m, order[i:j].sort().values, int(longest[i])) for i, j in zip(starts, ends, strict=True)]


def encode_micro_batch(model: "Model", part: MicroBatch, batch: Batch, device: torch.device) -> Tensor:
    """Encode a micro-batch on `device`, to which only its inputs are copied: embeddings [n, D].

    For an empty one the first item is encoded. The tower has to run because, in lockstep, the other processes wait for this
    process to exchange weights. In this case running statistics and random states are left unchanged.
    """
    modality = modality_of_view(part.modality)
    if len(part):
        return model.encode_inputs(modality, part.inputs(model, batch, device))
    before = RandomStates(1, device)
    with frozen_running_statistics(model):
        vectors = model.encode_inputs(modality, to_device(slice_inputs(batch.inputs[part.modality], 0, 1), device))
    before.restore(0)
    return vectors


def encode_all(
    model: "Model", batch: Batch, parts: Sequence[MicroBatch], autocast: Callable[[], AbstractContextManager[None]]
) -> dict[str, Tensor]:
    """Encode all micro-batches in one graph. Returns {modality: embeddings [U, D], float32}, in the order of the batch.

    In lockstep, a modality without items of this process gets one embedding, whose gradient must be zero.
    """
    device = batch.is_query.device
    z: dict[str, Tensor] = {}
    with autocast():
        for m in dict.fromkeys(part.modality for part in parts):
            of_modality = [part for part in parts if part.modality == m]
            encoded = [encode_micro_batch(model, part, batch, device) for part in of_modality]
            z[m] = encoded[0] if len(encoded) == 1 else torch.cat(encoded)
            sorted_items = [part.items for part in of_modality if isinstance(part.items, Tensor)]
            if len(sorted_items) > 1:
                z[m] = z[m][torch.cat(sorted_items).argsort().to(device)]
    return {m: v.float() for m, v in z.items()}


class ItemLengths(NamedTuple):
    """Lengths of the items of one modality, on the CPU.

    longest: int64 [U], positions of the longest row (window) of each item, without padding
    rows: int64 [U], rows of each item
    """

    longest: Tensor
    rows: Tensor


def item_lengths(model: "Model", key: str, inputs: Mapping[str, Tensor]) -> ItemLengths | None:
    """The lengths of the items of one modality; None if its tower's inputs have no lengths (see `Preprocess`)."""
    lengths = getattr(model.towers[modality_of_view(key)].preprocess, "lengths", lambda inputs: None)(inputs)
    if lengths is None:
        return None
    lengths = lengths.long().cpu()
    if SEGMENTS not in inputs:
        return ItemLengths(lengths, torch.ones_like(lengths))
    segments = inputs[SEGMENTS].long().cpu()
    rows = torch.bincount(segments)
    return ItemLengths(torch.zeros_like(rows).scatter_reduce(0, segments, lengths, "amax"), rows)


def has_lengths(tower: Tower) -> bool:
    """Whether the inputs of a tower have lengths, so that they can be sorted by them (see `Preprocess`)."""
    preprocess = tower.preprocess
    if not hasattr(preprocess, "lengths") or not hasattr(preprocess, "cut"):
        return False
    signal = modalities.get(tower.modality).examples()[0]
    return preprocess.lengths(preprocess.collate([preprocess(signal)])) is not None


def cuts_by_tokens(longest: np.ndarray, rows: np.ndarray, budget: int, size: int | None = None) -> list[int]:
    """First items of micro-batches with at most `budget` positions, padding included. An item over the budget is one of its own.

    longest: int [U], lengths of the items, descending
    rows: int [U], rows of each item
    size: the most items of a micro-batch; None: any number
    """
    starts, used = [0], 0
    for i, n in enumerate(rows.tolist()):
        first = starts[-1]
        if i > first and ((used + n) * int(longest[first]) > budget or (size is not None and i - first >= size)):
            starts.append(i)
            used = 0
        used += n
    return starts


def cuts_by_length(longest: np.ndarray, rows: np.ndarray, buckets: int) -> list[int]:
    """First items of at most `buckets` parts whose sum of rows x longest row is the least possible, by dynamic programming.

    longest: int [U], lengths of the items, descending
    rows: int [U], rows of each item
    """
    points = np.flatnonzero(np.diff(longest, prepend=-1))  # a bucket begins where the length changes
    if len(points) > CUT_POINTS:
        points = points[np.linspace(0, len(points) - 1, CUT_POINTS).astype(int)]
    before = np.concatenate([[0], np.cumsum(rows)])[np.append(points, len(rows))]  # rows before each point, and all of them
    # cost[i, j]: one bucket from point i to point j
    cost = np.where(
        np.tri(len(points), len(before), 0, dtype=bool), np.inf, (before - before[:-1, None]) * longest[points, None]
    )
    best, chosen = cost[0], []  # of all items before point j, in one bucket, two, ...
    for _ in range(1, min(buckets, len(points))):
        ways = best[:-1, None] + cost
        chosen.append(ways.argmin(0))
        best = ways.min(0)
    starts, j = [], len(points)
    for last in reversed(chosen):
        j = int(last[j])
        starts.append(int(points[j]))
    return [0, *reversed(starts)]
