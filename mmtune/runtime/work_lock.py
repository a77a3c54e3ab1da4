"""File locks, and a list of jobs that several processes share by means of lock files in the output directory.

Needs no coordinator process: start the same command several times on the same directory (torchrun, a Slurm array, two
terminals). The operating system releases a lock when the process that holds it ends, even if it is killed; another process then
runs the job. On a filesystem without locks a job may run twice. Jobs must therefore be deterministic and write their output
atomically.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

__all__ = ["FileLock", "Timeout", "file_lock", "run_jobs_once"]

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
