"""One step computed by several processes: loss and gradient are those of one process with the whole batch.

Every process has the rows and labels of the whole batch and encodes its share of the unique items of each modality, so an item
that appears in the rows of several processes is encoded once and is one item. Vectors are gathered (as in open_clip and
GradCache, arXiv 2101.06983, without a graph), every process computes the same loss on all of them and backpropagates it
through its own share, and the parameters' gradients are summed. The towers exchange nothing, so a process that has no item of
a modality waits for no other.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.runtime.distributed import Processes
from mmtune.training.large_batch.item_slices import ItemCounts, StepLoss, encode_all

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.objective import Objective


def shared_step(
    model: "Model",
    batch: Batch,
    objective: "Objective",
    counts: ItemCounts,
    autocast: Callable[[], AbstractContextManager[None]],
    processes: Processes,
) -> StepLoss:
    """This process's part of the gradient, its share of the items encoded in one forward pass."""
    z = encode_all(model, batch, counts, autocast)
    own = {m: v.detach()[: counts.own[m]] for m, v in z.items()}
    gradients, step_loss = gradient_of_vectors(own, batch, model, objective, processes)
    learning = [(z[m], padded_gradient(g, z[m])) for m, g in gradients.items() if g is not None and z[m].requires_grad]
    if learning:  # one call: a parameter that two towers share gets both parts
        torch.autograd.backward([v for v, _ in learning], [g for _, g in learning])
    return step_loss


def gradient_of_vectors(
    z: Mapping[str, Tensor], batch: Batch, model: "Model", objective: "Objective", processes: Processes
) -> tuple[dict[str, Tensor | None], StepLoss]:
    """The loss on the vectors of all processes, and its gradient with respect to this process's vectors.

    z[m] [u_m, D] is this process's share, without a graph. Returns (modality -> gradient [u_m, D], None where no term uses the
    modality; loss and logs). Parameters of the loss itself (logit scales, a learned bias) get their gradient here, on rank 0
    only: it is the same on every process and will be summed.
    """
    if processes.is_single:
        leaves = {m: v.requires_grad_() for m, v in z.items()}
    else:
        leaves = {}
        for m, item_of_row in batch.item_of_row.items():
            if n := int(item_of_row.max()) + 1:
                part = z[m] if m in z else torch.zeros(0, model.dim, device=item_of_row.device)
                leaves[m] = processes.gather(part, n).requires_grad_()
    loss, logs = objective(leaves, batch, model.logit_scale)
    loss.backward()
    if not processes.is_main_process:
        for p in [*model.parameters(), *objective.parameters()]:
            p.grad = None
    whole = {m: leaves[m].grad for m in z}
    own = {m: g if g is None or processes.is_single else g[processes.local_slice(len(g))] for m, g in whole.items()}
    return own, StepLoss(float(loss.detach()), logs)


def padded_gradient(gradient: Tensor, vectors: Tensor) -> Tensor:
    """The gradient of `vectors`; zeros where they are those of an item that was encoded for lockstep only."""
    return gradient if len(gradient) == len(vectors) else torch.zeros_like(vectors)


def all_reduce_gradients(processes: Processes, parameters: Sequence[nn.Parameter], flag: bool = False) -> bool:
    """Sum every parameter's gradient over processes; a parameter without a gradient on any process keeps none.

    Returns whether `flag` was True on any process, so that all of them act on it after the same step.
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
    processes.all_reduce([p.grad for p in learning if p.grad is not None])
    return bool(any_flag)


def average_running_statistics(processes: Processes, model: nn.Module) -> None:
    """Average the running statistics of BatchNorm layers in training mode: each process has normalised its own share."""
    if processes.is_single:
        return
    layers = [x for x in model.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm) and x.training]
    statistics = [b for x in layers for b in (x.running_mean, x.running_var) if b is not None]
    processes.all_reduce(statistics)
    for b in statistics:
        b.div_(processes.world_size)


def seed_process(processes: Processes, seed: int, step: int) -> None:
    """Seed the random numbers (dropout) of this step with a function of (seed, step, rank), so that processes draw different
    ones. One process alone keeps its stream."""
    if not processes.is_single:
        state = np.random.SeedSequence([seed, step, processes.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> 1))
