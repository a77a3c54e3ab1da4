"""Overlap of preparation and computation: the next batch is prepared and copied to the device while the current one is used."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from mmtune.runtime.threads import data_thread_pool

A = TypeVar("A")
B = TypeVar("B")


class DeviceCopier:
    """Copies tensors to `device`; a call returns when the copy is complete. To a CUDA device the copy goes through pinned memory
    and a CUDA stream of its own, so that, called from another thread, it runs beside the model."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.stream is None or x.device.type != "cpu":
            return x.to(self.device)
        with torch.cuda.stream(self.stream):
            copy = x.pin_memory().to(self.device, non_blocking=True)
        self.stream.synchronize()
        copy.record_stream(torch.cuda.default_stream(self.device))  # its memory is not reused while the model reads it
        return copy


def prefetch(source: Iterable[A], prepare: Callable[[A], B]) -> Iterator[B]:
    """prepare(x) of each x, in order; a thread draws and prepares the next one while the caller uses the current one.

    An error of `source` or `prepare` is raised where its result would have been used.
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
