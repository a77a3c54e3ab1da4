"""Processes that run the same program together: who is who, whose part is what, and the few things they exchange.

Whoever starts them (torchrun, accelerate launch, srun with these variables) says so in RANK, WORLD_SIZE, LOCAL_RANK and
MASTER_ADDR; one process alone exchanges nothing. Tensors travel over NCCL between GPUs and over gloo between CPUs.
"""

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.errors import TrainingError
from mmtune.runtime.rendezvous import agree

PATIENCE = datetime.timedelta(days=7)
"""How long one waits for what the first does alone (mining a large corpus); a process that died is noticed at once."""
AT_ONCE = 64 << 20  # bytes of one sum over processes


class Processes:
    """Process `rank` of `count`. Every method but `share` must be called by all of them, in the same order."""

    def __init__(self, rank: int = 0, count: int = 1, patient: Any = None) -> None:
        self.rank, self.world_size, self._patient = rank, count, patient

    @property
    def is_single(self) -> bool:
        """Whether there is only this one."""
        return self.world_size == 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def local_slice(self, n: int) -> slice:
        """This process's part of n things in order: contiguous, equal but for the last ones, possibly empty."""
        each = -(-n // self.world_size)
        start = min(self.rank * each, n)
        return slice(start, min(start + each, n))

    def local_size(self, n: int, rank: int | None = None) -> int:
        """How many of n things are in the share of this process, or of `rank`."""
        part = self.local_slice(n) if rank is None else Processes(rank, self.world_size).local_slice(n)
        return part.stop - part.start

    def gather(self, part: Tensor, n: int) -> Tensor:
        """All n rows [n, ...], of which `part` are this process's `share`. No gradient flows through."""
        if self.is_single or n == 0:
            return part
        each = -(-n // self.world_size)
        mine = part.new_zeros(each, *part.shape[1:])
        mine[: len(part)] = part.detach()
        whole = part.new_empty(each * self.world_size, *part.shape[1:])
        torch.distributed.all_gather(list(whole.split(each)), mine)
        return whole if len(whole) == n else whole[:n].clone()  # a piece of a larger storage could not be saved

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each tensor; shapes and types are the same everywhere."""
        if self.is_single:
            return
        waiting: list[Tensor] = []
        for tensor in tensors:
            size = sum(t.numel() * t.element_size() for t in waiting)
            if waiting and (size + tensor.numel() * tensor.element_size() > AT_ONCE or tensor.dtype != waiting[0].dtype):
                _add(waiting)
                waiting = []
            waiting.append(tensor)
        if waiting:
            _add(waiting)

    def broadcast_parameters(self, *modules: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if not self.is_single:
            for module in modules:
                for tensor in [*module.parameters(), *module.buffers()]:
                    torch.distributed.broadcast(tensor.data, 0)

    def broadcast(self, value: Any = None) -> Any:
        """The first process's `value` (plain data), at every process; theirs is ignored."""
        if self.is_single:
            return value
        data = bytearray(json.dumps(value).encode() if self.is_main_process else b"")
        size = torch.tensor([len(data)])
        torch.distributed.broadcast(size, 0, group=self._patient)
        body = torch.frombuffer(data, dtype=torch.uint8) if self.is_main_process else torch.empty(int(size), dtype=torch.uint8)
        torch.distributed.broadcast(body, 0, group=self._patient)
        return value if self.is_main_process else json.loads(body.numpy().tobytes())

    def barrier(self) -> None:
        """Until all have come here."""
        if not self.is_single:
            torch.distributed.barrier(group=self._patient)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process runs the body, then all the others do: for what is found on disk once it was made."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()


SINGLE_PROCESS = Processes()


def _add(tensors: list[Tensor]) -> None:
    if len(tensors) == 1 and tensors[0].is_contiguous():
        torch.distributed.all_reduce(tensors[0])
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def launched_world_size() -> int:
    """How many processes the launcher says that it started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def init_processes() -> Iterator[Processes]:
    """Meet the other processes; a group that the caller has opened already is used and left open."""
    mine = not torch.distributed.is_initialized()
    if mine:
        if launched_world_size() < 2 or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
            yield SINGLE_PROCESS
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        store, rank, count = next(torch.distributed.rendezvous("env://"))
        store = torch.distributed.PrefixStore(agree(store, rank, count), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
    count = torch.distributed.get_world_size()
    if count == 1:
        yield SINGLE_PROCESS
        return
    patient = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    together = Processes(torch.distributed.get_rank(), count, patient)
    try:
        yield together
    except RuntimeError as e:
        if not isinstance(e, torch.distributed.DistError) and "/gloo/" not in str(e):
            raise
        line = str(e).split("] ", 1)[-1].split(". ")[0].splitlines()[0]
        raise TrainingError(f"process {together.rank}: another process ended ({line}); its own message says why") from e
    together.barrier()  # reached only when all went well: after an error the others are not waited for
    if mine:
        torch.distributed.destroy_process_group()


def is_restarted() -> bool:
    """Whether torchrun started this anew after a process had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def silence_other_ranks() -> None:
    """Of several processes only the first answers on standard output."""
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout = open(os.devnull, "w")


def local_device() -> torch.device:
    """The accelerator that is this process's on this machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
