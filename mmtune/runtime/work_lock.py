"""File locks, and a list of jobs that several processes share by means of lock files in the output directory.

Needs no coordinator process: start the same command several times on the same directory (torchrun, a Slurm array, two
terminals). The operating system releases a lock when the process that holds it ends, even if it is killed; another process then
runs the job. On a filesystem without locks a job may run twice. Jobs must therefore be deterministic and write their output
atomically.
"""

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

__all__ = ["FileLock", "Timeout", "file_lock", "lock_in_turn", "run_jobs_once"]

Job = TypeVar("Job")

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
"""errno values of a filesystem that does not support locks."""


def file_lock(path: str | os.PathLike[str]) -> FileLock:
    """Create an exclusive lock on the file `path` for threads and processes. The lock is not acquired yet.

    `acquire(timeout=SECONDS)` raises `Timeout` if another thread or process holds the lock for that long. On a filesystem without
    locks `acquire` raises OSError: filelock's fallback, a marker file, is turned off because it would remain after its process was
    killed.
    """
    return FileLock(path, fallback_to_soft=False)


_waiting: dict[str, deque[threading.Event]] = {}
"""Path of a lock file -> what the threads of this process wait for that hold or want it, in the order in which they asked."""
_waiting_guard = threading.Lock()


@contextlib.contextmanager
def lock_in_turn(path: str | os.PathLike[str], timeout: float, poll_interval: float) -> Iterator[None]:
    """Context manager that holds the lock on the file `path`; it is not reentrant.

    The threads of this process get the lock in the order in which they asked for it: with polling alone, one of many busy threads may
    wait for minutes. Raises `Timeout` after `timeout` seconds.
    """
    key, turn, end = os.path.abspath(path), threading.Event(), time.monotonic() + timeout
    with _waiting_guard:
        queue = _waiting.setdefault(key, deque())
        queue.append(turn)
        queue[0].set()
    try:
        if not turn.wait(timeout):
            raise Timeout(key)
        lock = file_lock(path)
        lock.acquire(timeout=max(0.0, end - time.monotonic()), poll_interval=poll_interval)
        try:
            yield
        finally:
            lock.release()
    finally:
        with _waiting_guard:
            queue.remove(turn)
            if queue:
                queue[0].set()
            else:
                _waiting.pop(key, None)


def _forget_threads() -> None:
    """In a forked process, which has none of the threads that wait, and perhaps a copy of a held guard."""
    global _waiting_guard
    _waiting_guard = threading.Lock()
    _waiting.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_threads)


def run_jobs_once(
    jobs: Iterable[Job], output_path: Callable[[Job], Path], is_done: Callable[[Job], bool], run: Callable[[Job], object]
) -> None:
    """Run all jobs that are not done yet, sharing them with other processes that call this function with the same jobs.

    When the function returns, all jobs are done. Jobs that another process is running are skipped at first and waited for at the
    end. An exception in `run` stops the calling process only.

    output_path(job): the file that the job writes; while a process runs the job, a lock file exists in the same directory
    is_done(job): whether the job needs no (further) run
    run(job): run the job and write its output atomically
    """
    held_elsewhere = []
    for job in jobs:
        if not is_done(job):
            with _lock_beside(output_path(job), wait=False) as acquired:
                if not acquired:
                    held_elsewhere.append(job)
                elif not is_done(job):
                    run(job)
    for job in held_elsewhere:
        with _lock_beside(output_path(job), wait=True):
            if not is_done(job):
                run(job)


@contextlib.contextmanager
def _lock_beside(path: Path, wait: bool) -> Iterator[bool]:
    """Context manager that holds the lock for the output file `path`.

    Yields False if another process holds the lock (only with wait=False), else True. Also yields True on a filesystem that does
    not support locks.
    """
    lock_path = path.with_name(f".{path.name}.claim")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = file_lock(lock_path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
    try:
        yield True
        with contextlib.suppress(PermissionError):  # Windows: another process has the lock file open
            # removing the lock file is safe: a process that has opened it in the meantime will find the job done
            lock_path.unlink(missing_ok=True)
    finally:
        lock.release()
