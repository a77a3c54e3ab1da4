"""Prefetching: prepare the next batch and copy it to the device while the current batch is used."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from mmtune.runtime.threads import data_thread_pool

A = TypeVar("A")
B = TypeVar("B")


class DeviceCopier:
    """Copies tensors to `device`. A call returns when the copy is complete.

    A copy to a CUDA device goes through pinned memory and a separate CUDA stream. Called from a background thread, it therefore
    overlaps with the computation of the model.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.stream is None or x.device.type != "cpu":
            return x.to(self.device)
        with torch.cuda.stream(self.stream):
            copy = x.pin_memory().to(self.device, non_blocking=True)
        self.stream.synchronize()
        # tell the caching allocator that the default stream uses this memory, too, so that it is not reused too early
        copy.record_stream(torch.cuda.default_stream(self.device))
        return copy


def prefetch(source: Iterable[A], prepare: Callable[[A], B]) -> Iterator[B]:
    """Yield `prepare(x)` for each x of `source`, in order. A background thread prepares the next one while the caller uses the
    current one.

    An exception in `source` or `prepare` is raised when the caller asks for the result that it concerns.
    """
    items, end = iter(source), object()

    def prepare_next() -> B | object:
        x = next(items, end)
        return end if x is end else prepare(x)  # type: ignore[arg-type]

    with data_thread_pool(1) as pool:
        future = pool.submit(prepare_next)
        while (result := future.result()) is not end:
            future = pool.submit(prepare_next)
            yield result  # type: ignore[misc]
