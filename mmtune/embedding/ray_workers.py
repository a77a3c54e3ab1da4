"""`--engine ray`: as many workers as a Ray cluster has room for, each doing what one process does alone.

Plain Ray tasks over the locks of `claim`, and not Ray Data's `map_batches`: who embeds which part is settled the same way as
under torchrun or a Slurm array, through the one embedding path, so that the files are the same and a run may be killed under
one engine and finished under another. Ray Data would bring a reader, a batcher and a writer of its own beside ours, move every
vector through the object store, and start from nothing after its driver's death; what it adds, blocks that are given out as
workers come and go, the locks do already. Ray places the workers and starts them again when they die. The directory and its
locks must be one for all nodes (NFS has them). The caller then runs the same work itself: it finds that everything is there, or
makes what is not.
"""

from collections.abc import Callable
from typing import Any

from mmtune.errors import MissingExtra, MmtuneError

OBJECT_STORE = 128 << 20  # nothing travels through it but counts


def on_ray(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], workers: int | None = None, **options: Any) -> None:
    """Run `work(*arguments, **options)` in several workers at once, on the cluster of RAY_ADDRESS or on one that is started
    here for as long as it takes; returns when all have ended.

    work: a job that many may share, such as `mmtune.embedding.embed.embed`. arguments, options: absolute paths or names that every node
    understands. workers: default one a GPU, or one a core where there is none. A worker that died too often is left out: what
    it had not done is the others', or the caller's. Raises MissingExtra, and what `work` raises.
    """
    import logging
    import os

    try:
        import ray
    except ImportError:
        raise MissingExtra('--engine ray needs Ray: pip install "mmtune[ray]"') from None

    mine = not ray.is_initialized()
    if mine:
        there = bool(os.environ.get("RAY_ADDRESS"))
        here: dict[str, Any] = {} if there else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
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
        if mine:
            ray.shutdown()
