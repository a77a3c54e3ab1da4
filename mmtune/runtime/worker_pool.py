"""A pool of threads or processes that calls one function for many tasks, ahead of use, with the results in the order of the tasks."""

import mmap
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from mmtune.errors import DataError, MmtuneError, RecipeError
from mmtune.runtime.cpu_quota import local_cpus
from mmtune.runtime.threads import data_thread_pool, use_one_thread

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from torch.utils.data import DataLoader

A = TypeVar("A")
Task: TypeAlias = tuple
WorkerKind: TypeAlias = Literal["threads", "processes"]

AHEAD = 2
"""Tasks that are submitted ahead: this many in addition to one per thread, or this many per process."""
MOST_FOR_GPU, MOST_FOR_CPU = 16, 4
"""Most workers that "auto" uses. Every worker holds a batch; on a CPU, the workers take it from the training step."""


def count_workers(setting: int | Literal["auto"], device_type: str) -> int:
    """The number of workers; "auto": one for each CPU of this process, but at most 16 beside a GPU and 4 beside a step on the CPU."""
    if setting != "auto":
        return setting
    return min(local_cpus(), MOST_FOR_CPU if device_type == "cpu" else MOST_FOR_GPU)


class WorkerPool(Generic[A]):
    """Calls `function(*task)` for each task. Results do not depend on the kind or number of workers.

    function: what is called. Processes are forked, so it may be any callable, and keeps the state that it has at the first `start`
        or `map`. Tasks and results must be picklable; tensors are passed in shared memory
    workers: number of threads or processes
    kind: "threads" start at once and share all memory; "processes" (torch's DataLoader, Linux only) do not share Python's lock
    pin_memory: processes only: copy results to pinned memory, in a thread; a result needs a method `pin_memory`

    Raises RecipeError for processes on another system than Linux.
    """

    def __init__(self, function: Callable[..., A], workers: int, kind: WorkerKind = "threads", *, pin_memory: bool = False):
        if kind == "processes" and sys.platform != "linux":
            raise RecipeError("data.worker_kind: processes need Linux; use threads")
        self.function, self.workers, self.kind, self.pin_memory = function, workers, kind, pin_memory
        self._tasks = _Tasks()
        self._loader: DataLoader[A | _Failure] | None = None

    @property
    def ahead(self) -> int:
        """Largest number of tasks that are submitted before the result of the first of them is taken."""
        return self.workers * AHEAD if self.kind == "processes" else self.workers + AHEAD

    def start(self) -> None:
        """Start the processes now. Call it before threads start, because a fork copies the locks that they hold."""
        if self.kind == "processes" and self._loader is None:
            for _ in self._map_in_processes(()):
                pass

    def map(self, tasks: Iterable[Task]) -> Generator[A, None, None]:
        """Yield `function(*task)` for each task, in order. `tasks` is iterated in the calling thread, up to `ahead` tasks ahead.

        An exception of `tasks` or `function` is raised instead of the result that it concerns. Only one `map` at a time.
        """
        return self._map_in_processes(tasks) if self.kind == "processes" else self._map_in_threads(tasks)

    def close(self) -> None:
        """End the worker processes; the next `map` starts others."""
        iterator = getattr(self._loader, "_iterator", None)
        self._loader = None
        if iterator is not None:
            iterator._shutdown_workers()  # a DataLoader ends them only when nothing refers to its iterator, and an exception may
            for process in iterator._workers:  # they ignore SIGTERM, and may wait for a lock that a killed one held
                if process.is_alive():
                    process.kill()
                    process.join(10)

    def _map_in_threads(self, tasks: Iterable[Task]) -> Generator[A, None, None]:
        with data_thread_pool(self.workers) as pool:
            pending: deque[Future[A]] = deque()
            try:
                for task in tasks:
                    pending.append(pool.submit(self.function, *task))
                    if len(pending) >= self.ahead:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _map_in_processes(self, tasks: Iterable[Task]) -> Generator[A, None, None]:
        from torch.utils.data import DataLoader

        if self._loader is None:
            with warnings.catch_warnings():  # that there are more workers than CPUs
                warnings.simplefilter("ignore", UserWarning)
                self._loader = DataLoader(
                    _Calls(self.function),  # type: ignore[arg-type]
                    sampler=self._tasks,
                    batch_size=None,
                    num_workers=self.workers,
                    collate_fn=_unchanged,
                    pin_memory=self.pin_memory,
                    worker_init_fn=_start_worker,
                    multiprocessing_context=_fork_context(),
                    prefetch_factor=AHEAD,
                    persistent_workers=True,
                )
                iter(self._loader)  # starts the processes
        self._tasks.current = iter(tasks)
        try:
            for result in self._loader:
                if isinstance(result, _Failure):
                    raise result.error
                yield result
        except RuntimeError as e:
            if "DataLoader worker" not in str(e):
                raise
            self.close()
            raise DataError(_what_ended_it(str(e))) from None


class _Flag:
    """An event in shared memory without a lock: a process that is killed while it looks at it cannot block the others."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Set it, for all processes that were forked."""
        self._memory[0] = 1

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._memory[0] == 1


def _fork_context() -> "BaseContext":
    """Processes by fork, whose event in a DataLoader is a `_Flag`; that of multiprocessing takes a lock to be read."""
    usual = type(multiprocessing.get_context("fork"))
    return type("ForkContext", (usual,), {"Event": lambda self: _Flag()})()


class _Tasks:
    """The sampler of a DataLoader: iterates the current tasks."""

    current: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.current


@dataclass
class _Failure:
    """An error for the user, which is raised in the main process without the traceback of the worker."""

    error: MmtuneError


class _Calls(Generic[A]):
    """The dataset of a DataLoader: element `task` is the result of the function."""

    def __init__(self, function: Callable[..., A]):
        self.function = function

    def __getitem__(self, task: Task) -> "A | _Failure":
        try:
            return self.function(*task)
        except MmtuneError as e:
            return _Failure(e)


def _unchanged(result: A) -> A:
    return result


def _start_worker(number: int) -> None:
    """Prepare a worker process: one thread for each operation; Ctrl-C and SIGTERM are handled by the main process, which ends it."""
    use_one_thread()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)


def _what_ended_it(message: str) -> str:
    """The line for the user after a worker process has died."""
    if hasattr(os, "statvfs") and ("shared memory" in message or "Bus error" in message):
        free = os.statvfs("/dev/shm")
        size = free.f_blocks * free.f_frsize >> 20
        return (
            f"data.worker_kind: a worker process ran out of shared memory (/dev/shm has {size:,} MB); give the container more "
            "(docker run --shm-size 8g), or use data.worker_kind=threads"
        )
    return (
        "data.worker_kind: a worker process was killed, perhaps because the memory was full; use fewer data.workers, or "
        "data.worker_kind=threads"
    )
