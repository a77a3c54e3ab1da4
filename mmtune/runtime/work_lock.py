"""File locks, and jobs that several processes share through the directory they write to.

No launcher and no server: torchrun, a Slurm array or two terminals start the same command on the same directory. The
operating system releases a lock when its holder dies, however it dies, and the job goes to another process. Where a
filesystem has no locks a job may be done twice: what it writes must be the same each time, and appear whole.
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
"""What a filesystem without locks answers."""


def file_lock(path: str | os.PathLike[str]) -> FileLock:
    """An exclusive lock on the file `path`, over threads and processes, on Linux, macOS and Windows; not held yet.

    `acquire(timeout=SECONDS)` raises `Timeout` when another holds it. Never a marker file, which would outlive a killed holder:
    where the filesystem has no locks `acquire` raises OSError.
    """
    return FileLock(path, fallback_to_soft=False)


def run_jobs_once(
    jobs: Iterable[Job], path: Callable[[Job], Path], is_done: Callable[[Job], bool], run: Callable[[Job], object]
) -> None:
    """Run every job that is not done, here or in another process that shares them; all are done when this returns.

    path(job): the file that the job publishes; a lock file lies beside it while a process works on it. Jobs that another
    process holds are waited for at the end. An error of `run` ends this process's work, not that of the others.
    """
    held_elsewhere = []
    for job in jobs:
        if not is_done(job):
            with _lock_beside(path(job), wait=False) as acquired:
                if not acquired:
                    held_elsewhere.append(job)
                elif not is_done(job):
                    run(job)
    for job in held_elsewhere:
        with _lock_beside(path(job), wait=True):
            if not is_done(job):
                run(job)


@contextlib.contextmanager
def _lock_beside(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock of `path`, for as long as the body runs."""
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
        with contextlib.suppress(PermissionError):  # Windows: another process has it open
            lock_path.unlink(missing_ok=True)  # a process that has opened it meanwhile finds the job done
    finally:
        lock.release()
