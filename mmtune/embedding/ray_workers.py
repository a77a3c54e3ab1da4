"""Embed on a Ray cluster (`mmtune embed --engine ray`): one worker per GPU, or one per CPU core if there is no GPU.

Each worker is a Ray task that runs the same function as a single process would. The workers share the work through lock files
(`mmtune.runtime.work_lock`), exactly as processes started by torchrun or a Slurm array do. The output files are therefore the
same, and a run that was interrupted under one engine can be resumed under another. Ray starts the workers and restarts those
that die. All nodes must see the same output directory, on a file system that supports locks (NFS does). After `on_ray`, the
caller runs the same function itself, to write any part that is still missing.

Ray Data's `map_batches` is not used: it needs its own reading, batching and writing, it moves every embedding through the
object store, and after a failure of the driver process it starts from the beginning.
"""

from collections.abc import Callable

from mmtune.runtime.ray_cluster import in_directory, ray_cluster


def on_ray(work: Callable[..., object], arguments: tuple[object, ...], workers: int | None = None, **options: object) -> None:
    """Run `work(*arguments, **options)` in several workers at once and return when all of them have ended.

    Connects to the cluster of the environment variable RAY_ADDRESS, or starts one on this machine for the duration of the call.
    A worker that has died more than three times is not restarted; the other workers or the caller complete its work.

    work: a function that several processes can run together, such as `mmtune.embedding.parquet_parts.embed`
    arguments, options: its arguments. Relative paths are those of the directory of the caller; all paths must be valid on every node
    workers: number of workers; None means one per GPU, or one per CPU core if there is no GPU

    Raises MissingExtra if Ray is not installed, and any MmtuneError that `work` raises.
    """
    with ray_cluster() as cluster:
        ray = cluster.ray
        task = ray.remote(num_cpus=1, num_gpus=1 if cluster.gpus else 0, max_retries=3)(in_directory(work))
        for worker in [task.remote(*arguments, **options) for _ in range(cluster.workers(workers))]:
            try:
                cluster.result(worker)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                continue  # it died too often; the others or the caller write its parts
