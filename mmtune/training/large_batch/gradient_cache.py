"""Gradient caching: a training step on a large batch that needs only the memory of a micro-batch.

GradCache (Gao et al. 2021, arXiv 2101.06983) works in three passes. First every micro-batch is encoded without an autograd
graph. Then the loss on all embeddings, and its gradient with respect to them, are computed. Finally each micro-batch is encoded
again with the same random state, and its part of the gradient is backpropagated through the towers. The extra forward
pass makes the computation 4/3 of that of a plain step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.runtime.distributed import Processes
from mmtune.training.large_batch.item_slices import ItemCounts, RandomStates, StepLoss, frozen_running_statistics
from mmtune.training.large_batch.micro_batches import MicroBatch, encode_micro_batch
from mmtune.training.large_batch.shared_step import gradient_of_vectors, padded_gradient

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.objective import Objective


def cached_step(
    model: "Model",
    batch: Batch,
    objective: "Objective",
    counts: ItemCounts,
    parts: Sequence[MicroBatch],
    autocast: Callable[[], AbstractContextManager[None]],
    processes: Processes,
    weight: float = 1.0,
) -> StepLoss:
    """Run one step with the micro-batches `parts`, which have all items of the batch (see `step.forward_backward`)."""
    device = batch.is_query.device
    # Tensors that outlive a micro-batch are allocated before the first one. Otherwise a small tensor that stays on top of the
    # heap would prevent the allocator from reusing the memory below it that the micro-batch has freed.
    states = RandomStates(len(parts) + 1, device)
    z: dict[str, Tensor] = {}
    with torch.no_grad():
        for number, part in enumerate(parts):
            states.save(number)
            with autocast():
                vectors = encode_micro_batch(model, part, batch, device)
            m = part.modality
            if m not in z:
                z[m] = torch.empty(counts.own[m], vectors.shape[1], device=device)
            z[m][part.numbers(device)] = vectors[: len(part)].float()
            del vectors
    states.save(len(parts))
    gradients, step_loss = gradient_of_vectors(z, batch, model, objective, processes, weight)
    with frozen_running_statistics(model), contiguous_gradients(model):
        for number, part in enumerate(parts):
            gradient = gradients[part.modality]
            if gradient is None:  # no term uses this modality
                continue
            states.restore(number)
            with autocast():
                again = encode_micro_batch(model, part, batch, device).float()
            if again.requires_grad:  # False for a frozen tower
                again.backward(padded_gradient(gradient[part.numbers(device)], again))
            del again
    states.restore(len(parts))
    return step_loss


@contextlib.contextmanager
def contiguous_gradients(model: nn.Module) -> Iterator[None]:
    """Context manager in which new gradients are accumulated in one large allocation (CPU only).

    Otherwise the first micro-batch would allocate gradients between tensors that it frees later. The fragmented heap would
    then grow by about half of a micro-batch's activations. Parameters that receive no gradient have `grad` None at the end.
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
