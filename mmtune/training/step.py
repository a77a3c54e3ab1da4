"""How a step's gradient is taken: in one pass, or a micro-batch at a time with the gradient of the whole batch.

Gradient caching (GradCache, Gao et al. 2021, arXiv 2101.06983): encode every micro-batch without a graph, take the loss on
all vectors and its gradient with respect to them, then encode each micro-batch again, with the random state it had, and push
its share of that gradient through the towers. Memory is one micro-batch's, the arithmetic 4/3 of a plain step.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.large_batch.shared_step import shared_loss

SEGMENTS = "segments"
"""Name of an input tensor [W] that says which unique item each of W windows belongs to (sorted, each item at least one)."""


def count_items(inputs: Mapping[str, Tensor]) -> int:
    """Unique items in one modality's inputs."""
    if SEGMENTS in inputs:
        segments = inputs[SEGMENTS]
        return int(segments[-1]) + 1 if len(segments) else 0
    return len(next(iter(inputs.values())))


def slice_inputs(inputs: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Items [start, stop) of one modality's inputs; windows travel with their item and are numbered from 0 again."""
    if SEGMENTS not in inputs:
        return {k: v[start:stop] for k, v in inputs.items()}
    segments = inputs[SEGMENTS]
    a, b = torch.searchsorted(segments, torch.tensor([start, stop], device=segments.device)).tolist()
    return {k: v[a:b] - start if k == SEGMENTS else v[a:b] for k, v in inputs.items()}


def forward_backward(
    model: Any,
    batch: Batch,
    objective: Callable[..., tuple[Tensor, dict[str, float]]],
    *,
    micro_batch_size: int | None = None,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    processes: Processes = SINGLE_PROCESS,
    in_step: bool = False,
) -> tuple[float, dict[str, float]]:
    """Leave the gradient of `objective` on `batch` in the parameters; returns (loss, logs).

    With several `processes` (see `distributed`) the batch's inputs are this one's share, and what is left is its part of the
    gradient: the sum over processes is the whole; gradients must be clear beforehand.

    With `micro_batch_size` the towers never see more unique items at once; gradients, the scale's included, are those of
    the unsplit batch whose dropout is drawn micro-batch by micro-batch. Layers that normalise over the batch (BatchNorm)
    see micro-batches: their running statistics move once for each, as in the first pass. The objective runs in float32.

    in_step: towers exchange weights while they run (`sharding`), so every process runs each tower as often as the one with the
    most items does, in the end on an item whose gradient is zero; who has no item of a modality is given one (`Loader`).
    """
    sizes = {m: n for m, x in batch.inputs.items() if (n := count_items(x))}
    most = sizes
    if in_step:
        everyones = {m: int(s.max()) + 1 for m, s in batch.item_of_row.items() if m in sizes}
        sizes = {m: processes.local_size(n) for m, n in everyones.items()}
        most = {m: processes.local_size(n, 0) for m, n in everyones.items()}
    if micro_batch_size is None or all(n <= micro_batch_size for n in most.values()):
        with autocast():
            whole = {
                m: model.encode_inputs(m, batch.inputs[m]) if n else _encode(model, m, batch.inputs[m], 0, 0)
                for m, n in sizes.items()
            }
        whole = {m: v.float() for m, v in whole.items()}
        if not processes.is_single:
            cut = {m: v.detach()[: sizes[m]] for m, v in whole.items()}
            gradients, value, logs = shared_loss(cut, batch, model, objective, backward, processes)
            learn = [
                (whole[m], _as_long(g, whole[m])) for m, g in gradients.items() if g is not None and whole[m].requires_grad
            ]
            if learn:  # one call: a parameter that two towers share gets both parts
                torch.autograd.backward([v for v, _ in learn], [g for _, g in learn])
            return value, logs
        loss, logs = objective(whole, batch, model.logit_scale)
        backward(loss)
        return float(loss.detach()), logs

    starts = [(m, i, sizes[m]) for m, n in most.items() for i in range(0, n, micro_batch_size)]
    chunks = [(m, min(i, n), min(i + micro_batch_size, n)) for m, i, n in starts]
    # What outlives a micro-batch has its place beforehand: a small tensor left behind on top of the heap keeps the
    # allocator from reusing all that a micro-batch frees below it.
    states = RandomStates(len(chunks) + 1, batch.is_query.device)
    z: dict[str, Tensor] = {}
    with torch.no_grad():
        for number, (m, i, j) in enumerate(chunks):
            states.keep(number)
            with autocast():
                part = _encode(model, m, batch.inputs[m], i, j)
            if m not in z:
                z[m] = torch.empty(sizes[m], part.shape[1], device=part.device)
            z[m][i:j] = part[: j - i]
            del part
    states.keep(len(chunks))
    gradients, value, logs = shared_loss(z, batch, model, objective, backward, processes)
    with statistics_frozen(model), gradients_in_one_piece(model):
        for number, (m, i, j) in enumerate(chunks):
            gradient = gradients[m]
            if gradient is None:  # no term looks at this modality
                continue
            states.restore(number)
            with autocast():
                again = _encode(model, m, batch.inputs[m], i, j).float()
            if again.requires_grad:  # not a frozen tower's
                again.backward(_as_long(gradient[i:j], again))
            del again
    states.restore(len(chunks))
    return value, logs


def _encode(model: Any, modality: str, inputs: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    """Vectors of items [start, stop). Of none: the first item's, run for the other processes' sake and leaving no trace."""
    if start < stop:
        return model.encode_inputs(modality, slice_inputs(inputs, start, stop))
    before = RandomStates(1, next(iter(inputs.values())).device)
    with statistics_frozen(model):
        vectors = model.encode_inputs(modality, slice_inputs(inputs, 0, 1))
    before.restore(0)
    return vectors


def _as_long(gradient: Tensor, vectors: Tensor) -> Tensor:
    """The gradient of `vectors`; zero where there is none because the item counts for nothing."""
    return gradient if len(gradient) == len(vectors) else torch.zeros_like(vectors)


class RandomStates:
    """Random states of the CPU and of one accelerator, to draw the same dropout twice."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state().repeat(count, 1)
        self.other = torch.cuda.get_rng_state(device).repeat(count, 1) if device.type == "cuda" else None

    def keep(self, number: int) -> None:
        """Remember the present state as `number`."""
        self.cpu[number] = torch.get_rng_state()
        if self.other is not None:
            self.other[number] = torch.cuda.get_rng_state(self.device)

    def restore(self, number: int) -> None:
        """Go back to where `number` was kept. (torch reads the memory from its start: a row has to be copied out.)"""
        torch.set_rng_state(self.cpu[number].clone())
        if self.other is not None:
            torch.cuda.set_rng_state(self.other[number].clone(), self.device)


@contextlib.contextmanager
def statistics_frozen(model: Any) -> Iterator[None]:
    """Within, BatchNorm layers normalise as before but leave their running statistics alone (they moved already)."""
    layers = (
        [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if isinstance(model, nn.Module) else []
    )
    kept = [(m, m.momentum, m.num_batches_tracked.clone() if m.num_batches_tracked is not None else None) for m in layers]
    for m, _, _ in kept:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum, count in kept:
            m.momentum = momentum
            if count is not None and m.num_batches_tracked is not None:
                m.num_batches_tracked.copy_(count)


@contextlib.contextmanager
def gradients_in_one_piece(model: Any) -> Iterator[None]:
    """Within, gradients that do not exist yet are added up in one large piece of memory (CPU only).

    Else the first micro-batch leaves them scattered among what it frees, and the heap grows by half a micro-batch's
    activations that nothing can use. Parameters that get no gradient have none afterwards.
    """
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    parameters = [p for p in parameters if p.requires_grad and p.grad is None and type(p) is nn.Parameter and p.is_cpu]
    touched: set[int] = set()
    hooks = [p.register_post_accumulate_grad_hook(lambda q: touched.add(id(q))) for p in parameters]
    for dtype in {p.dtype for p in parameters}:
        mine = [p for p in parameters if p.dtype == dtype]
        piece = torch.zeros(sum(p.numel() for p in mine), dtype=dtype)
        for p, part in zip(mine, piece.split([p.numel() for p in mine]), strict=True):
            p.grad = part.view(p.shape)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for p in parameters:
            if id(p) not in touched:
                p.grad = None
