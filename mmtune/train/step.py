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
) -> tuple[float, dict[str, float]]:
    """Leave the gradient of `objective` on `batch` in the parameters; returns (loss, logs).

    With `micro_batch_size` the towers never see more unique items at once; gradients, the scale's included, are those of
    the unsplit batch whose dropout is drawn micro-batch by micro-batch. Layers that normalise over the batch (BatchNorm)
    see micro-batches: their running statistics move once for each, as in the first pass. The objective runs in float32.
    """
    sizes = {m: count_items(x) for m, x in batch.inputs.items()}
    sizes = {m: n for m, n in sizes.items() if n}
    if micro_batch_size is None or all(n <= micro_batch_size for n in sizes.values()):
        with autocast():
            z = {m: model.encode_inputs(m, batch.inputs[m]) for m in sizes}
        loss, logs = objective({m: v.float() for m, v in z.items()}, batch, model.scale)
        backward(loss)
        return float(loss.detach()), logs

    chunks = [(m, i, min(i + micro_batch_size, n)) for m, n in sizes.items() for i in range(0, n, micro_batch_size)]
    states, parts = [], {m: [] for m in sizes}  # type: ignore[var-annotated]
    with torch.no_grad():
        for m, i, j in chunks:
            states.append(RandomState(_device(batch)))
            with autocast():
                parts[m].append(model.encode_inputs(m, slice_inputs(batch.inputs[m], i, j)).float())
    after = RandomState(_device(batch))
    z = {m: torch.cat(p).requires_grad_() for m, p in parts.items()}
    loss, logs = objective(z, batch, model.scale)
    backward(loss)
    with statistics_frozen(model):
        for (m, i, j), state in zip(chunks, states, strict=True):
            gradient = z[m].grad
            if gradient is None:  # no term looks at this modality
                continue
            state.restore()
            with autocast():
                again = model.encode_inputs(m, slice_inputs(batch.inputs[m], i, j)).float()
            again.backward(gradient[i:j])
    after.restore()
    return float(loss.detach()), logs


def _device(batch: Batch) -> torch.device:
    return batch.queries.device


class RandomState:
    """The random state of the CPU and of one accelerator, to draw the same dropout twice."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.other = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Go back to where this was captured."""
        torch.set_rng_state(self.cpu)
        if self.other is not None:
            torch.cuda.set_rng_state(self.other, self.device)


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
