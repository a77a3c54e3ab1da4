"""`mmtune embed --engine ray`: as many workers as a Ray cluster has room for, each doing what `embed` does.

Ray places the workers and starts them again when they die; who embeds which part they settle by themselves, by the locks of
`claim`, so DIR and its locks must be one for all nodes (NFS has them). At the end this process looks for itself that every
part is there, and makes what is not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.embed import embed
from mmtune.errors import MissingExtra, MmtuneError

OBJECT_STORE = 128 << 20  # nothing travels through it but counts


def embed_on_ray(
    model: str,
    data: str,
    out: str | Path,
    wanted: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    workers: int | None = None,
    dim: int | None = None,
    role: str | None = None,
) -> dict[str, Any]:
    """As `embed`, on the cluster of RAY_ADDRESS, or on one that is started here for as long as it takes.

    model, data and out are absolute paths or names that every node understands. workers: default one a GPU, or one a core where
    there is none. Raises MissingExtra, and what `embed` raises.
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
        ray.init(log_to_driver=not quiet, logging_level=logging.ERROR, **here)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = workers or gpus or int(ray.cluster_resources().get("CPU", 1))
        work = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=3)(embed)
        place = str(Path(out).absolute())
        running = [work.remote(model, data, place, wanted, batch_size, True, dim=dim, role=role) for _ in range(count)]
        for worker in running:
            try:
                ray.get(worker)
            except ray.exceptions.RayTaskError as e:
                if isinstance(e.cause, MmtuneError):
                    raise e.cause from None
                raise
            except ray.exceptions.RayError:  # it died too often: its parts are the others', or ours below
                continue
    finally:
        if mine:
            ray.shutdown()
    return embed(model, data, out, wanted, batch_size, quiet, dim=dim, role=role)
