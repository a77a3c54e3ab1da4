"""The processes of one distributed run: rank and world size, which part of the work is whose, and the collectives they use.

The launcher (torchrun, accelerate launch, srun with these variables) sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR; a
single process communicates with nobody. Tensors travel over NCCL between GPUs and over gloo between CPUs.
"""

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmtune.errors import TrainingError
from mmtune.runtime.rendezvous import agree_on_attempt

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LONG_TIMEOUT = datetime.timedelta(days=7)
"""How long the other ranks wait for rank 0's own work (mining a large corpus). A process that died is noticed at once."""
REDUCE_BYTES = 64 << 20
"""Tensors are concatenated up to this size before they are reduced."""


class Processes:
    """This process, `rank` of `world_size`. Every method but `local_slice` and `local_size` is a collective: all ranks must
    call it, in the same order."""

    def __init__(self, rank: int = 0, world_size: int = 1, long_group: "ProcessGroup | None" = None) -> None:
        """long_group: a gloo group with LONG_TIMEOUT, for what may have to wait long."""
        self.rank, self.world_size, self._long_group = rank, world_size, long_group

    @property
    def is_single(self) -> bool:
        """Whether there is only one process."""
        return self.world_size == 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def local_slice(self, n: int) -> slice:
        """This rank's part of n ordered items: contiguous, of equal size but for the last ranks, possibly empty."""
        size = -(-n // self.world_size)
        start = min(self.rank * size, n)
        return slice(start, min(start + size, n))

    def local_size(self, n: int, rank: int | None = None) -> int:
        """How many of n items are in the part of this rank, or of `rank`."""
        part = self.local_slice(n) if rank is None else Processes(rank, self.world_size).local_slice(n)
        return part.stop - part.start

    def gather(self, part: Tensor, n: int) -> Tensor:
        """All n rows [n, ...], of which `part` is this rank's `local_slice`. No gradient flows through."""
        if self.is_single or n == 0:
            return part
        size = -(-n // self.world_size)
        padded = part.new_zeros(size, *part.shape[1:])
        padded[: len(part)] = part.detach()
        rows = part.new_empty(size * self.world_size, *part.shape[1:])
        torch.distributed.all_gather(list(rows.split(size)), padded)
        return rows if len(rows) == n else rows[:n].clone()  # torch.save would write the whole storage of a view

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over all ranks, in place; shapes and dtypes are the same on every rank."""
        if self.is_single:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            size = sum(t.numel() * t.element_size() for t in bucket)
            if bucket and (size + tensor.numel() * tensor.element_size() > REDUCE_BYTES or tensor.dtype != bucket[0].dtype):
                _all_reduce(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            _all_reduce(bucket)

    def broadcast_parameters(self, *modules: nn.Module) -> None:
        """Copy rank 0's parameters and buffers to every rank."""
        if not self.is_single:
            for module in modules:
                for tensor in [*module.parameters(), *module.buffers()]:
                    torch.distributed.broadcast(tensor.data, 0)

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's `value` (plain JSON data) on every rank; the other ranks' is ignored."""
        if self.is_single:
            return value
        data = bytearray(json.dumps(value).encode() if self.is_main_process else b"")
        size = torch.tensor([len(data)])
        torch.distributed.broadcast(size, 0, group=self._long_group)
        body = torch.frombuffer(data, dtype=torch.uint8) if self.is_main_process else torch.empty(int(size), dtype=torch.uint8)
        torch.distributed.broadcast(body, 0, group=self._long_group)
        return value if self.is_main_process else json.loads(body.numpy().tobytes())

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if not self.is_single:
            torch.distributed.barrier(group=self._long_group)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 runs the body, then the other ranks do, e.g. to read what rank 0 has written."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()


SINGLE_PROCESS = Processes()


def _all_reduce(tensors: list[Tensor]) -> None:
    if len(tensors) == 1 and tensors[0].is_contiguous():
        torch.distributed.all_reduce(tensors[0])
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def launched_world_size() -> int:
    """How many processes the launcher says it started (WORLD_SIZE), 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def init_processes() -> Iterator[Processes]:
    """Initialise torch.distributed for the body, by the launcher's variables; SINGLE_PROCESS without them.

    A process group that the caller has initialised already is used and left open. Raises TrainingError when another process
    ends while this one waits for it.
    """
    owned = not torch.distributed.is_initialized()
    if owned:
        if launched_world_size() < 2 or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
            yield SINGLE_PROCESS
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        store, rank, world_size = next(torch.distributed.rendezvous("env://"))
        store = torch.distributed.PrefixStore(agree_on_attempt(store, rank, world_size), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    long_group = cast("ProcessGroup", torch.distributed.new_group(backend="gloo", timeout=LONG_TIMEOUT))  # all ranks are in it
    processes = Processes(torch.distributed.get_rank(), world_size, long_group)
    try:
        yield processes
    except RuntimeError as e:
        if not isinstance(e, torch.distributed.DistError) and "/gloo/" not in str(e):
            raise
        line = str(e).split("] ", 1)[-1].split(". ")[0].splitlines()[0]
        raise TrainingError(f"process {processes.rank}: another process ended ({line}); its own message says why") from e
    processes.barrier()  # reached only on success: after an error the other ranks are not waited for
    if owned:
        torch.distributed.destroy_process_group()


def is_restarted() -> bool:
    """Whether torchrun restarted this process after one of its workers had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def silence_other_ranks() -> None:
    """Drop the standard output of every rank but 0, so that a command prints its result once."""
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout = open(os.devnull, "w")


def local_device() -> torch.device:
    """This process's own GPU on this machine (by LOCAL_RANK), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
