"""Compute the gradient of one training step. `forward_backward` chooses one of three ways:

- `plain_step` encodes all items of the batch in one graph: in one forward pass, or in one for each bucket of like length.
- `gradient_cache.cached_step` encodes one micro-batch at a time and still gives the gradient of the whole batch.
- `shared_step.shared_step` divides the items among several processes.

All give the gradient of the same loss, up to rounding and the random numbers of dropout. Sharding blocks over processes
(`fsdp.ShardedBlocks`) works with each of them, but requires that every process runs each tower equally often (`lockstep`).
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from mmtune.contracts import Batch
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.fixed_order import gradients_in_fixed_order
from mmtune.training.large_batch.gradient_cache import cached_step
from mmtune.training.large_batch.item_slices import StepLoss, count_batch_items
from mmtune.training.large_batch.micro_batches import Limits, MicroBatch, TokenBudget, divide_batch, encode_all
from mmtune.training.large_batch.shared_step import shared_step

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.objective import Objective


def forward_backward(
    model: "Model",
    batch: Batch,
    objective: "Objective",
    *,
    micro_batch_size: int | None = None,
    micro_batch_tokens: TokenBudget = None,
    length_buckets: int | None = None,
    autocast: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    processes: Processes = SINGLE_PROCESS,
    lockstep: bool = False,
    weight: float = 1.0,
) -> StepLoss:
    """Add the gradient of `objective` on `batch` to the parameters, and return (loss, logs). The objective runs in float32.

    micro_batch_size: maximum number of unique items of one modality in a forward pass. The gradient, also of the logit scale, is
        that of the whole batch. BatchNorm layers normalise over the micro-batch, and update their running statistics once
        for each micro-batch
    micro_batch_tokens: maximum number of tokens (samples of a sound) in a forward pass, padding included, for all modalities whose inputs
        have lengths, or {modality: number}. Their items are sorted by length first
    length_buckets: without gradient caching, encode the items of such modalities in so many forward passes of one graph, sorted by
        length, so that less padding is computed
    autocast: returns the context manager under which the towers run
    processes: with several processes, the inputs in `batch` are only the share of this process (see `Processes.local_slice`).
        The gradient is then this process's part, and the sum over processes is the whole gradient
    lockstep: True if the towers exchange weights while they run (`fsdp`). Then every process runs each tower as often as the
        process with the most items. If necessary it encodes an item whose gradient is zero; the `Loader` gives every process
        at least one item of each modality
    weight: factor on the gradient, for gradient accumulation; the returned loss does not have it
    """
    counts = count_batch_items(batch, processes, lockstep)
    limits = Limits(micro_batch_size, micro_batch_tokens, length_buckets)
    parts = divide_batch(model, batch, counts, limits, processes, lockstep)
    with gradients_in_fixed_order(batch.is_query.device):
        if limits.caches_gradients and len(parts) > len(counts.run):
            return cached_step(model, batch, objective, counts, parts, autocast, processes, weight)
        if processes.is_single:
            return plain_step(model, batch, objective, parts, autocast, weight)
        return shared_step(model, batch, objective, counts, parts, autocast, processes, weight)


def plain_step(
    model: "Model",
    batch: Batch,
    objective: "Objective",
    parts: Sequence[MicroBatch],
    autocast: Callable[[], AbstractContextManager[None]],
    weight: float = 1.0,
) -> StepLoss:
    """Use one process, with one backward pass over the whole batch."""
    loss, logs = objective(encode_all(model, batch, parts, autocast), batch, model.logit_scale)
    (loss * weight).backward()
    return StepLoss(float(loss.detach()), logs)
