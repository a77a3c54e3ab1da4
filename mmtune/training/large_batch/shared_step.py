"""One training step computed by several processes, with the same loss and gradient as one process with the whole batch.

Every process has the rows and labels of the whole batch, and encodes its share of each modality's unique items. So an item that
occurs in several rows is encoded only once. The embeddings are gathered without an autograd graph (similar to open_clip, and to
GradCache, arXiv 2101.06983). Every process computes the same loss on all embeddings, and backpropagates it through its own
share. Finally the gradients of the parameters are summed over processes. The towers themselves do not communicate, so a process
without items of some modality does not block the others.

An objective whose own computation is large, that of a cross-encoder, is divided as well (`Objective.is_divided`): every process
computes a part of the loss, and the gradients of the embeddings are summed before the backward pass through the towers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.contracts import Batch, modality_of_view
from mmtune.runtime.distributed import Processes
from mmtune.training.large_batch.item_slices import ItemCounts, StepLoss
from mmtune.training.large_batch.micro_batches import MicroBatch, encode_all

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.objective import Objective


def shared_step(
    model: "Model",
    batch: Batch,
    objective: "Objective",
    counts: ItemCounts,
    parts: Sequence[MicroBatch],
    autocast: Callable[[], AbstractContextManager[None]],
    processes: Processes,
    weight: float = 1.0,
) -> StepLoss:
    """Compute this process's part of the gradient, with its share of the items, `parts`, encoded in one graph."""
    z = encode_all(model, batch, parts, autocast)
    own = {m: v.detach()[: counts.own[m]] for m, v in z.items()}
    gradients, step_loss = gradient_of_vectors(own, batch, model, objective, processes, weight)
    learning = [(z[m], padded_gradient(g, z[m])) for m, g in gradients.items() if g is not None and z[m].requires_grad]
    if learning:  # a single backward call, so that a parameter that two towers share gets the gradients of both
        torch.autograd.backward([v for v, _ in learning], [g for _, g in learning])
    return step_loss


def gradient_of_vectors(
    z: Mapping[str, Tensor],
    batch: Batch,
    model: "Model",
    objective: "Objective",
    processes: Processes,
    weight: float = 1.0,
) -> tuple[dict[str, Tensor | None], StepLoss]:
    """Compute the loss on the embeddings of all processes, and its gradient with respect to the embeddings of this process.

    Returns ({modality: gradient [u_m, D], or None if no term uses the modality}, loss and logs). Parameters that the loss uses
    directly (logit scales, a learned bias) get their gradient here, on rank 0 only. Every process computes the same gradient
    for them, and gradients are summed over processes later. If the objective is divided, they get a part of it on every rank.

    z: {modality m: embeddings of this process's share [u_m, D]}, without an autograd graph
    weight: factor on the gradient
    """
    if processes.is_single:
        leaves = {m: v.requires_grad_() for m, v in z.items()}
    else:
        leaves = {}
        for m, item_of_row in batch.item_of_row.items():
            if n := int(item_of_row.max()) + 1:
                part = z[m] if m in z else torch.zeros(0, model.output_width(modality_of_view(m)), device=item_of_row.device)
                leaves[m] = processes.gather(part, n).requires_grad_()
    loss, logs = objective(leaves, batch, model.logit_scale)
    accumulated = []
    if (
        not processes.is_main_process and not objective.is_divided
    ):  # the gradients of earlier batches of the step stay as they are
        accumulated = [(p, p.grad) for p in [*model.parameters(), *objective.parameters()]]
        for p, _ in accumulated:
            p.grad = None
    (loss * weight).backward()
    for p, grad in accumulated:
        p.grad = grad
    if objective.is_divided:
        all_reduce_gradients(processes, list(leaves.values()))
    whole = {m: leaves[m].grad for m in z}
    own = {m: g if g is None or processes.is_single else g[processes.local_slice(len(g))] for m, g in whole.items()}
    return own, _summed(processes, loss, logs) if objective.is_divided else StepLoss(float(loss.detach()), logs)


def _summed(processes: Processes, loss: Tensor, logs: dict[str, float]) -> StepLoss:
    """Sum the parts of a divided loss, and of its terms, over processes."""
    values = torch.tensor([float(loss.detach()), *logs.values()], device=loss.device)
    processes.all_reduce([values])
    total, *terms = values.tolist()
    return StepLoss(total, dict(zip(logs, terms, strict=True)))


def padded_gradient(gradient: Tensor, vectors: Tensor) -> Tensor:
    """Return `gradient`, or zeros if `vectors` belong to an item that was encoded only for lockstep."""
    return gradient if len(gradient) == len(vectors) else torch.zeros_like(vectors)


def all_reduce_gradients(
    processes: Processes, parameters: Sequence[Tensor], flag: bool = False, sent_as: torch.dtype | None = None
) -> bool:
    """Sum the gradient of every parameter over processes. A parameter without a gradient on any process keeps none.

    Returns whether `flag` is True on any process, so that all processes can react to it after the same step.

    sent_as: dtype in which gradients are sent and summed; default: their own
    """
    if processes.is_single:
        return flag
    has_gradient = [float(p.grad is not None) for p in parameters]
    count = torch.tensor([*has_gradient, float(flag)], device=parameters[0].device)
    processes.all_reduce([count])
    *anywhere, any_flag = (count > 0).tolist()
    learning = [p for p, has in zip(parameters, anywhere, strict=True) if has]
    for p in learning:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    processes.all_reduce([p.grad for p in learning if p.grad is not None], sent_as)
    return bool(any_flag)


def average_running_statistics(processes: Processes, model: nn.Module) -> None:
    """Average the running statistics of BatchNorm layers in training mode over processes.

    They differ, because each process has normalised its own share of the batch.
    """
    if processes.is_single:
        return
    layers = [x for x in model.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm) and x.training]
    statistics = [b for x in layers for b in (x.running_mean, x.running_var) if b is not None]
    processes.all_reduce(statistics)
    for b in statistics:
        b.div_(processes.world_size)


def seed_process(processes: Processes, seed: int, step: int) -> None:
    """Seed the random numbers (dropout) of this step from (seed, step, rank), so that each process draws different ones.

    A single process is not seeded again.
    """
    if not processes.is_single:
        state = np.random.SeedSequence([seed, step, processes.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> 1))
