"""One step taken by several processes: the loss and the gradient are those of one process with the whole batch.

Every process has the plan and the labels of the whole batch and encodes its share of the unique items of each modality, so
what appears in several processes' rows is still encoded once and is still one item. Vectors are gathered (open_clip's and
GradCache's way, arXiv 2101.06983, without a graph), every process takes the same loss on all of them, follows it back through
its own share, and the parameters' gradients are added up. The towers never exchange anything, so a process that has no row of
a modality waits for nobody.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.runtime.distributed import Processes


def shared_loss(
    z: Mapping[str, Tensor],
    batch: Batch,
    model: Any,
    objective: Callable[..., tuple[Tensor, dict[str, float]]],
    backward: Callable[[Tensor], None],
    processes: Processes,
) -> tuple[dict[str, Tensor | None], float, dict[str, float]]:
    """The loss on everyone's vectors, and its gradient with respect to this process's: (modality -> [u_m, D] or None where
    no term looks at it, loss, logs). z[m] [u_m, D] is this process's share, without a graph.

    Parameters that the loss itself uses (temperatures, a learned bias) get their gradient here, at the first process only:
    it is the same everywhere and will be added up.
    """
    if processes.is_single:
        leaves = {m: v.requires_grad_() for m, v in z.items()}
    else:
        leaves = {}
        for m, slot in batch.item_of_row.items():
            if n := int(slot.max()) + 1:
                part = z[m] if m in z else torch.zeros(0, model.dim, device=slot.device)
                leaves[m] = processes.gather(part, n).requires_grad_()
    loss, logs = objective(leaves, batch, model.logit_scale)
    backward(loss)
    if not processes.is_main_process:
        for module in (model, objective):
            for p in module.parameters() if isinstance(module, nn.Module) else ():
                p.grad = None
    found = {m: leaves[m].grad for m in z}
    mine = {m: g if g is None or processes.is_single else g[processes.local_slice(len(g))] for m, g in found.items()}
    return mine, float(loss.detach()), logs


def sum_gradients(processes: Processes, parameters: Sequence[nn.Parameter], flag: bool = False) -> bool:
    """Put the sum over processes into every parameter's gradient; what nobody has a gradient of keeps none.

    Returns whether any process came with `flag` up, so that all of them act on it after the same step.
    """
    if processes.is_single:
        return flag
    mine = [float(p.grad is not None) for p in parameters]
    some = torch.tensor([*mine, float(flag)], device=parameters[0].device)
    processes.all_reduce([some])
    *has, raised = (some > 0).tolist()
    learning = [p for p, h in zip(parameters, has, strict=True) if h]
    for p in learning:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    processes.all_reduce([p.grad for p in learning if p.grad is not None])
    return bool(raised)


def mean_statistics(processes: Processes, model: nn.Module) -> None:
    """Running statistics of BatchNorm layers that learn: each process normalised its share, all remember the mean."""
    if processes.is_single:
        return
    layers = [x for x in model.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm) and x.training]
    found = [b for x in layers for b in (x.running_mean, x.running_var) if b is not None]
    processes.all_reduce(found)
    for b in found:
        b.div_(processes.world_size)


def draw_apart(processes: Processes, seed: int, step: int) -> None:
    """Random numbers (dropout) of this step: a stream of its own for each process, a function of (seed, step, rank)."""
    if not processes.is_single:
        torch.manual_seed(int(np.random.SeedSequence([seed, step, processes.rank]).generate_state(1, np.uint64)[0] >> 1))
