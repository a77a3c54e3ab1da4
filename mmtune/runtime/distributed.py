"""Distributed training: rank and world size, how items are divided over the ranks, and the collective operations.

The launcher (torchrun, accelerate launch, or srun) must set the environment variables RANK, WORLD_SIZE, LOCAL_RANK and
MASTER_ADDR. Without them a run has one process and no communication. GPU tensors are sent over NCCL, CPU tensors over gloo.
"""

import contextlib
import datetime
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmtune.errors import ProcessEnded
from mmtune.runtime.devices import local_device
from mmtune.runtime.rendezvous import agree_on_attempt

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LONG_TIMEOUT = datetime.timedelta(days=7)
"""Timeout for waiting on work that only rank 0 does, e.g. mining a large corpus. A process that dies is detected at once: the
timeout does not delay that."""
REDUCE_BYTES = 64 << 20
"""`Processes.all_reduce` concatenates tensors into buckets of at most this many bytes, to need fewer collective calls."""


class Processes:
    """The process group from the view of this process, which has rank `rank` out of `world_size`.

    All methods except `local_slice` and `local_size` are collectives: every rank must call them, in the same order.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, long_group: "ProcessGroup | None" = None) -> None:
        """Create the view of one rank.

        rank: number of this process, from 0
        world_size: number of processes
        long_group: gloo process group with the timeout LONG_TIMEOUT, used by `broadcast` and `barrier`
        """
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
        """The contiguous slice of n ordered items that belongs to this rank.

        All slices have the same size, except that those of the last ranks may be shorter or empty.
        """
        size = -(-n // self.world_size)
        start = min(self.rank * size, n)
        return slice(start, min(start + size, n))

    def local_size(self, n: int, rank: int | None = None) -> int:
        """The number of items in the `local_slice` of n items of this rank, or of the given `rank`."""
        part = self.local_slice(n) if rank is None else Processes(rank, self.world_size).local_slice(n)
        return part.stop - part.start

    def gather(self, part: Tensor, n: int) -> Tensor:
        """Concatenate every rank's `part` of n rows into one tensor [n, ...] on every rank. Gradients are not propagated.

        part: the rows of this rank's `local_slice(n)`, [local rows, ...]
        """
        if self.is_single or n == 0:
            return part
        size = -(-n // self.world_size)
        padded = part.new_zeros(size, *part.shape[1:])
        padded[: len(part)] = part.detach()
        rows = part.new_empty(size * self.world_size, *part.shape[1:])
        torch.distributed.all_gather(list(rows.split(size)), padded)
        return rows if len(rows) == n else rows[:n].clone()  # a copy, because torch.save writes the whole storage of a view

    def all_reduce(self, tensors: Sequence[Tensor], sent_as: torch.dtype | None = None) -> None:
        """Sum each tensor over all ranks, in place. Shapes and dtypes must be the same on every rank.

        sent_as: dtype in which the tensors are sent and summed; default: their own
        """
        if self.is_single:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            size = sum(t.numel() * t.element_size() for t in bucket)
            if bucket and (size + tensor.numel() * tensor.element_size() > REDUCE_BYTES or tensor.dtype != bucket[0].dtype):
                _all_reduce(bucket, sent_as)
                bucket = []
            bucket.append(tensor)
        if bucket:
            _all_reduce(bucket, sent_as)

    def broadcast_parameters(self, *modules: nn.Module) -> None:
        """Overwrite the parameters and buffers of `modules` on every rank with those of rank 0."""
        if not self.is_single:
            for module in modules:
                for tensor in [*module.parameters(), *module.buffers()]:
                    torch.distributed.broadcast(tensor.data, 0)

    def broadcast(self, value: Any = None) -> Any:
        """Return rank 0's `value` (data that JSON can represent) on every rank. The `value` of other ranks is ignored."""
        if self.is_single:
            return value
        data = bytearray(json.dumps(value).encode() if self.is_main_process else b"")
        size = torch.tensor([len(data)])
        torch.distributed.broadcast(size, 0, group=self._long_group)
        body = torch.frombuffer(data, dtype=torch.uint8) if self.is_main_process else torch.empty(int(size), dtype=torch.uint8)
        torch.distributed.broadcast(body, 0, group=self._long_group)
        return value if self.is_main_process else json.loads(body.numpy().tobytes())

    def gather_bytes(self, data: bytes, group: "ProcessGroup | None" = None) -> list[bytes]:
        """Return the `data` of every rank, in the order of ranks, on every rank.

        group: the gloo process group to use, by default the one of `broadcast`. A thread other than the main thread needs a group
            of its own (`new_group`), because all ranks must make the calls on a group in the same order
        """
        if self.is_single:
            return [data]
        group = group or self._long_group
        own = torch.tensor([len(data)])
        sizes = [torch.empty_like(own) for _ in range(self.world_size)]
        torch.distributed.all_gather(sizes, own, group=group)
        longest = max(1, *(int(s) for s in sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data) or bytearray(1), dtype=torch.uint8)[: len(data)]
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def new_group(self) -> "ProcessGroup | None":
        """Create another gloo process group of all ranks, for `gather_bytes`; None for a single process."""
        if self.is_single:
            return None
        return cast("ProcessGroup", torch.distributed.new_group(backend="gloo", timeout=LONG_TIMEOUT))

    def barrier(self) -> None:
        """Wait until every rank has called this method."""
        if not self.is_single:
            torch.distributed.barrier(group=self._long_group)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Context manager: the body runs on rank 0 first, then on the other ranks, e.g. to read a file that rank 0 has written."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()


SINGLE_PROCESS = Processes()


def _all_reduce(tensors: list[Tensor], sent_as: torch.dtype | None) -> None:
    sent_as = sent_as or tensors[0].dtype
    if len(tensors) == 1 and tensors[0].is_contiguous() and tensors[0].dtype == sent_as:
        torch.distributed.all_reduce(tensors[0])
        return
    flat = torch.cat([t.reshape(-1).to(sent_as) for t in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def launched_world_size() -> int:
    """The number of processes that the launcher started (environment variable WORLD_SIZE); 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def init_processes() -> Iterator[Processes]:
    """Context manager that initialises torch.distributed from the launcher's environment variables.

    Yields the `Processes` of this rank, or SINGLE_PROCESS when those variables are missing. If the caller has initialised a
    process group already (Ray Train does), that group is used and not destroyed afterwards. Raises ProcessEnded when another process ends
    while this process waits for it.
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
    long_group = cast("ProcessGroup", torch.distributed.new_group(backend="gloo", timeout=LONG_TIMEOUT))  # of all ranks
    processes = Processes(torch.distributed.get_rank(), world_size, long_group)
    try:
        with _warnings_of_main_process(processes):
            yield processes
    except RuntimeError as e:
        # gloo raises a plain RuntimeError when a peer is gone; its message names a source file under /gloo/
        if not isinstance(e, torch.distributed.DistError) and "/gloo/" not in str(e):
            raise
        line = str(e).split("] ", 1)[-1].split(". ")[0].partition("\n")[0]
        raise ProcessEnded(
            f"process {processes.rank}: another process ended ({line}); see the error message of that process for the cause"
        ) from e
    processes.barrier()  # only on success: after an error this process ends without waiting for the other ranks
    if owned:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _warnings_of_main_process(processes: Processes) -> Iterator[None]:
    """Context manager: ranks other than 0 show no warnings, because all ranks read the same recipe, data and model."""
    with warnings.catch_warnings():
        if not processes.is_main_process:
            warnings.simplefilter("ignore")
        yield


def is_restarted() -> bool:
    """Whether torchrun has restarted this process because one of the processes died (torchrun --max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def silence_other_ranks() -> None:
    """Discard this process's standard output unless it is rank 0, so that a command prints its result only once."""
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout = open(os.devnull, "w")
