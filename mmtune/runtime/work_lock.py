"""Jobs that several processes share through the directory they write to: whoever holds a job's lock does it.

No launcher and no server: torchrun, a Slurm array or two terminals start the same command on the same directory. The kernel
lets a lock go when its holder dies, however it dies, and the job is another's. Where a filesystem knows no locks a job may be
done twice: what it writes must be the same, and appear whole.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

Job = TypeVar("Job")


def share_out(
    jobs: Iterable[Job], path: Callable[[Job], Path], done: Callable[[Job], bool], make: Callable[[Job], object]
) -> None:
    """`make` every job that is not `done`, here or in another process; all are done when it returns.

    path(job): the file that the job publishes; its lock lies beside it while somebody works. What another holds is left to it,
    and waited for at the end. An error of `make` ends this process's work, not that of others.
    """
    left = []
    for job in jobs:
        if not done(job):
            with _claimed(path(job), wait=False) as mine:
                if not mine:
                    left.append(job)
                elif not done(job):
                    make(job)
    for job in left:
        with _claimed(path(job), wait=True):
            if not done(job):
                make(job)


@contextlib.contextmanager
def _claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock of `path`, for as long as the body runs."""
    claim = path.with_name(f".{path.name}.claim")
    claim.parent.mkdir(parents=True, exist_ok=True)
    with open(claim, "w") as file:  # closing it lets the lock go
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # no locks here
            pass
        yield True
        claim.unlink(missing_ok=True)  # one that has opened it meanwhile finds the job done
