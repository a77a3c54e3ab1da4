"""One training step's gradient. There are several ways to compute it, behind the one call `forward_backward`:

- `plain_step`, here: all items of the batch in one forward pass.
- `gradient_cache.cached_step`: a micro-batch at a time, with the gradient of the whole batch.
- `shared_step.shared_step`: several processes encode a share of the items each.
- blocks sharded among processes (`fsdp.ShardedBlocks`) change no step; they only need every process to run each tower
  equally often (`lockstep`).

All leave the gradient of the same loss in the parameters, up to rounding and the random numbers of dropout.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from mmtune.contracts import Batch
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.large_batch.gradient_cache import cached_step
from mmtune.training.large_batch.item_slices import ItemCounts, StepLoss, count_batch_items, encode_all
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
    autocast: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    processes: Processes = SINGLE_PROCESS,
    lockstep: bool = False,
) -> StepLoss:
    """Add the gradient of `objective` on `batch` to the parameters; returns (loss, logs). The objective runs in float32.

    micro_batch_size: the towers never see more unique items at once; the gradient, that of the logit scale included, is that
    of the unsplit batch whose dropout is drawn micro-batch by micro-batch. Layers that normalise over the batch (BatchNorm)
    see micro-batches: their running statistics are updated once for each, as in the first pass.

    processes: the batch's inputs are this process's share (see `Processes.local_slice`), and the gradient is its part: the sum
    over processes is the whole gradient. Gradients must be None beforehand.

    lockstep: towers exchange weights while they run (`fsdp`), so every process runs each tower as often as the process with
    the most items, if need be on an item whose gradient is zero; a process without an item of a modality is given one
    (`Loader`).
    """
    counts = count_batch_items(batch, processes, lockstep)
    if micro_batch_size is not None and counts.largest > micro_batch_size:
        return cached_step(model, batch, objective, counts, micro_batch_size, autocast, processes)
    if processes.is_single:
        return plain_step(model, batch, objective, counts, autocast)
    return shared_step(model, batch, objective, counts, autocast, processes)


def plain_step(
    model: "Model",
    batch: Batch,
    objective: "Objective",
    counts: ItemCounts,
    autocast: Callable[[], AbstractContextManager[None]],
) -> StepLoss:
    """One process, one forward and one backward pass over the whole batch."""
    loss, logs = objective(encode_all(model, batch, counts, autocast), batch, model.logit_scale)
    loss.backward()
    return StepLoss(float(loss.detach()), logs)
