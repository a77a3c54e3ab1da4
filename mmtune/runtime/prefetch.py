"""What an accelerator needs next is copied there while it is busy with what came before."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from mmtune.runtime.threads import preparing

A = TypeVar("A")
B = TypeVar("B")


class Mover:
    """Copies tensors to `device`; a call returns when the copy is there. To a CUDA device it goes through pinned memory and a
    stream of its own: called from another thread, it runs beside the model."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.stream is None or x.device.type != "cpu":
            return x.to(self.device)
        with torch.cuda.stream(self.stream):
            there = x.pin_memory().to(self.device, non_blocking=True)
        self.stream.synchronize()
        there.record_stream(torch.cuda.default_stream(self.device))  # its memory is not reused while the model reads it
        return there


def in_advance(source: Iterable[A], work: Callable[[A], B]) -> Iterator[B]:
    """work(x) of each x, in order; the next x is drawn and worked on in a thread while the caller is busy with this one."""
    items, end = iter(source), object()

    def following() -> B | object:
        x = next(items, end)
        return end if x is end else work(x)  # type: ignore[arg-type]

    with preparing(1) as pool:
        future = pool.submit(following)
        while (done := future.result()) is not end:
            future = pool.submit(following)
            yield done  # type: ignore[misc]
