"""Run `mmtune embed` on a Ray cluster (`--engine ray`): one worker per GPU, or one per CPU core if there is no GPU.

Each worker is a Ray task that runs the same function as a single process would. The workers share the work through lock files
(`mmtune.runtime.work_lock`), exactly as processes started by torchrun or a Slurm array do. The output files are therefore the
same, and a run that was interrupted under one engine can be resumed under another. Ray starts the workers and restarts those
that die. All nodes must see the same output directory, on a file system that supports locks (NFS does). After `on_ray`, the
caller runs the same function itself, to write any part that is still missing.

Ray Data's `map_batches` is not used: it needs its own reading, batching and writing, it moves every embedding through the
object store, and after a failure of the driver process it starts from the beginning.
"""

import logging
import os
from collections.abc import Callable

from mmtune.contracts import JsonObject
from mmtune.errors import MissingExtra, MmtuneError

OBJECT_STORE_BYTES = 128 << 20
"""Size of Ray's object store. It can be small, because the workers write their embeddings to files."""


def on_ray(work: Callable[..., object], arguments: tuple[object, ...], workers: int | None = None, **options: object) -> None:
    """Run `work(*arguments, **options)` in several workers at once and return when all of them have ended.

    Connects to the cluster of the environment variable RAY_ADDRESS, or starts one on this machine for the duration of the call.
    A worker that has died more than three times is not restarted; the other workers or the caller complete its work.

    work: a function that several processes can run together, such as `mmtune.embedding.parquet_parts.embed`
    arguments, options: its arguments; paths must be absolute and valid on every node
    workers: number of workers; None means one per GPU, or one per CPU core if there is no GPU

    Raises MissingExtra if Ray is not installed, and any MmtuneError that `work` raises.
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
