"""Connect to a Ray cluster, for the commands that run on one (`--engine ray`).

The cluster is the one of the environment variable RAY_ADDRESS, or one that is started on this machine for the duration of the
command. Tasks run in the directory of the command, so that relative paths mean the same; on other machines it must exist, as must
all files that the command reads and writes.
"""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, ParamSpec, TypeAlias, TypeVar

from mmtune.contracts import JsonObject
from mmtune.errors import MissingExtra, MmtuneError

P = ParamSpec("P")
R = TypeVar("R")
Engine: TypeAlias = Literal["here", "ray"]
"""Where a command runs: in its own process (and those of its launcher), or on a Ray cluster."""
OBJECT_STORE_BYTES = 128 << 20
"""Size of the object store of a cluster that is started here: results are files, or a few MB each."""


@dataclass(frozen=True)
class RayCluster:
    """A connected cluster.

    ray: the module `ray`
    cpus, gpus: what all its nodes have together
    """

    ray: ModuleType
    cpus: int
    gpus: int

    def workers(self, asked: int | None = None) -> int:
        """The number of workers: `asked`, else one per GPU, else one per CPU core."""
        return asked or self.gpus or self.cpus

    def alive(self) -> int:
        """The number of GPUs of the nodes that are there now, or of CPU cores if there is no GPU."""
        return int(self.ray.cluster_resources().get("GPU" if self.gpus else "CPU", 0))

    def result(self, reference: object) -> object:
        """Wait for a task and return its result. A MmtuneError that it raised is raised here as it is."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, MmtuneError):
                raise e.cause from None
            raise


@contextlib.contextmanager
def ray_cluster(*, show_logs: bool = False) -> Iterator[RayCluster]:
    """Context manager that connects to the cluster of RAY_ADDRESS, or starts one on this machine until the context ends.

    A connection that exists already is used, and kept.

    show_logs: print what the workers print

    Raises MissingExtra if Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra('--engine ray needs Ray: pip install "mmtune[ray]"') from None

    started_here = not ray.is_initialized()
    if started_here:
        small: JsonObject = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        local = {} if os.environ.get("RAY_ADDRESS") else small
        ray.init(log_to_driver=show_logs, logging_level=logging.ERROR, **local)
    try:
        resources = ray.cluster_resources()
        yield RayCluster(ray, int(resources.get("CPU", 1)), int(resources.get("GPU", 0)))
    finally:
        if started_here:
            ray.shutdown()


def in_directory(work: Callable[P, R], directory: str | Path | None = None) -> Callable[P, R]:
    """Return `work` as a function that runs in `directory` (default: the current one), for a worker that was started elsewhere.

    Modules beside the command's data (`package.module:Class`) can be imported there too. Raises MmtuneError on a machine that lacks the
    directory.
    """
    where = str(Path(directory or Path.cwd()).absolute())

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            os.chdir(where)
        except OSError:
            raise MmtuneError(
                f"{where}: is missing on a node of the Ray cluster; all nodes must share the directory of the command (e.g. by NFS)"
            ) from None
        if where not in sys.path:
            sys.path.append(where)
        return work(*args, **kwargs)

    return run
