"""Gradient caching: a step on a large batch with the memory of a micro-batch.

GradCache (Gao et al. 2021, arXiv 2101.06983): encode every micro-batch without a graph, compute the loss on all vectors and
its gradient with respect to them, then encode each micro-batch again, with the random state it had, and backpropagate its
part of that gradient through the towers. Memory is that of one micro-batch, the arithmetic 4/3 of a plain step.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.runtime.distributed import Processes
from mmtune.training.large_batch.item_slices import (
    ItemCounts,
    RandomStates,
    StepLoss,
    encode_slice,
    frozen_running_statistics,
)
from mmtune.training.large_batch.shared_step import gradient_of_vectors, padded_gradient

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.objective import Objective


def cached_step(
    model: "Model",
    batch: Batch,
    objective: "Objective",
    counts: ItemCounts,
    micro_batch_size: int,
    autocast: Callable[[], AbstractContextManager[None]],
    processes: Processes,
) -> StepLoss:
    """The step with at most `micro_batch_size` items of a modality in one forward pass; see `step.forward_backward`."""
    starts = [(m, i, counts.own[m]) for m, n in counts.run.items() for i in range(0, n, micro_batch_size)]
    chunks = [(m, min(i, n), min(i + micro_batch_size, n)) for m, i, n in starts]
    # What outlives a micro-batch is allocated beforehand: a small tensor left behind on top of the heap keeps the allocator
    # from reusing all the memory that a micro-batch frees below it.
    states = RandomStates(len(chunks) + 1, batch.is_query.device)
    z: dict[str, Tensor] = {}
    with torch.no_grad():
        for number, (m, i, j) in enumerate(chunks):
            states.save(number)
            with autocast():
                part = encode_slice(model, m, batch.inputs[m], i, j)
            if m not in z:
                z[m] = torch.empty(counts.own[m], part.shape[1], device=part.device)
            z[m][i:j] = part[: j - i]
            del part
    states.save(len(chunks))
    gradients, step_loss = gradient_of_vectors(z, batch, model, objective, processes)
    with frozen_running_statistics(model), contiguous_gradients(model):
        for number, (m, i, j) in enumerate(chunks):
            gradient = gradients[m]
            if gradient is None:  # no term uses this modality
                continue
            states.restore(number)
            with autocast():
                again = encode_slice(model, m, batch.inputs[m], i, j).float()
            if again.requires_grad:  # False for a frozen tower
                again.backward(padded_gradient(gradient[i:j], again))
            del again
    states.restore(len(chunks))
    return step_loss


@contextlib.contextmanager
def contiguous_gradients(model: nn.Module) -> Iterator[None]:
    """Within, gradients that do not exist yet are accumulated in one large allocation (CPU only).

    Otherwise the first micro-batch leaves them scattered among what it frees, and the heap grows by half a micro-batch's
    activations that nothing can use. Parameters that get no gradient have none afterwards.
    """
    parameters = [p for p in model.parameters() if p.requires_grad and p.grad is None and type(p) is nn.Parameter and p.is_cpu]
    with_gradient: set[int] = set()
    hooks = [p.register_post_accumulate_grad_hook(lambda q: with_gradient.add(id(q))) for p in parameters]
    for dtype in {p.dtype for p in parameters}:
        same = [p for p in parameters if p.dtype == dtype]
        buffer = torch.zeros(sum(p.numel() for p in same), dtype=dtype)
        for p, part in zip(same, buffer.split([p.numel() for p in same]), strict=True):
            p.grad = part.view(p.shape)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for p in parameters:
            if id(p) not in with_gradient:
                p.grad = None
