"""`--engine ray`: as many workers as a Ray cluster has room for, each running the same job as a single process would.

The workers are plain Ray tasks that share the work through lock files (`mmtune.runtime.work_lock`), and not Ray Data's
`map_batches`: parts are shared in the same way as under torchrun or a Slurm array, through the one embedding path, so the files
are the same, and a run may be killed under one engine and finished under another. Ray Data would add a reader, a batcher and a
writer beside ours, move every vector through the object store, and start from nothing after its driver's death. Ray places the
workers and restarts them when they die. The output directory must be the same for all nodes, on a file system that has locks
(NFS does). Afterwards the caller runs the same work itself, which finds every part written, or writes the missing ones.
"""

import logging
import os
from collections.abc import Callable

from mmtune.contracts import JsonObject
from mmtune.errors import MissingExtra, MmtuneError

OBJECT_STORE_BYTES = 128 << 20
"""Only results of a few numbers travel through the object store."""


def on_ray(work: Callable[..., object], arguments: tuple[object, ...], workers: int | None = None, **options: object) -> None:
    """Run `work(*arguments, **options)` in several workers at once and return when all have ended.

    The cluster is that of RAY_ADDRESS, or one that is started on this machine for the duration of the call.

    work: a job that many may share, such as `mmtune.embedding.parquet_parts.embed`. arguments, options: absolute paths or names
    that every node understands. workers: default one per GPU, or one per core where there is none. A worker that died too often
    is given up: the others, or the caller, do its work. Raises MissingExtra, and the MmtuneError that `work` raises.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra('--engine ray needs Ray: pip install "mmtune[ray]"') from None

    started_here = not ray.is_initialized()
    if started_here:
        small_cluster = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        local: JsonObject = {} if os.environ.get("RAY_ADDRESS") else small_cluster
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = workers or gpus or int(ray.cluster_resources().get("CPU", 1))
        task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=3)(work)
        for worker in [task.remote(*arguments, **options) for _ in range(count)]:
            try:
                ray.get(worker)
            except ray.exceptions.RayTaskError as e:
                if isinstance(e.cause, MmtuneError):
                    raise e.cause from None
                raise
            except ray.exceptions.RayError:
                continue
    finally:
        if started_here:
            ray.shutdown()
