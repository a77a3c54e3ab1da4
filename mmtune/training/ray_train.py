"""Train in the workers of Ray Train's TorchTrainer (`mmtune train --engine ray`), as an alternative to torchrun.

Ray Train starts one process per GPU (or CPU core) on the nodes of the cluster, and initialises torch.distributed in them. Each
process then runs the training loop that torchrun would run (`init_processes` uses a process group that exists), so batches, losses,
checkpoints and files are the same, and a run that was interrupted under one launcher can be resumed under the other. If a worker
dies, all workers are started again and continue from the last checkpoint. All nodes must see the run directory.
"""

import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from mmtune.errors import MmtuneError, ProcessEnded, RecipeError, TrainingError
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.distributed import launched_world_size
from mmtune.runtime.ray_cluster import RayCluster, in_directory, ray_cluster
from mmtune.training.callbacks import Callback
from mmtune.training.stop_signals import Stopped
from mmtune.training.train_result import TrainResult

RESTARTS = 3
"""How often the workers are started again after one of them has died."""
BACKEND = "cpu:gloo,cuda:nccl"
"""torch.distributed's backends where there is a GPU: tensors of the CPU are exchanged, too."""
SCRATCH = ".ray"
"""Folder in the run directory for Ray Train's own files, which all nodes must see. It is removed at the end."""


def train_on_ray(
    train: Callable[..., TrainResult],
    recipe: "Recipe | Mapping[str, object] | str | Path",
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    workers: int | None = None,
) -> TrainResult:
    """Call `train(recipe, ...)` in all workers of a TorchTrainer and return the result of rank 0.

    train: `mmtune.run.train`
    recipe, overrides, resume, quiet: as for `train`; relative paths are those of the current directory
    callbacks: as for `train`; they are pickled by Ray
    workers: number of processes; None means one per GPU, or one per CPU core if there is no GPU. After the death of a node there
        may be fewer

    Raises MissingExtra if Ray is not installed, any MmtuneError that a worker raises, and TrainingError if workers died more than
    RESTARTS times.
    """
    if launched_world_size() > 1:
        raise RecipeError("--engine ray starts its own workers: leave out torchrun")
    checked = Recipe.read(recipe, overrides)
    scratch = Path(checked.run.dir).absolute() / SCRATCH
    with ray_cluster(show_logs=not quiet) as cluster:
        count = cluster.workers(workers)
        try:
            for attempt in range(RESTARTS + 1):
                arguments = {"resume": resume or attempt > 0, "quiet": quiet, "callbacks": list(callbacks)}
                try:
                    return _run_workers(cluster, train, checked, arguments, count, scratch, attempt > 0)
                except _WorkerDied as e:
                    if attempt == RESTARTS:
                        raise TrainingError(
                            f"{e}, for the {RESTARTS + 1}th time; the same command with --resume continues"
                        ) from None
                    count = max(1, min(count, cluster.alive()))
                    print(f"{e}; {count} workers continue from the last checkpoint", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    raise AssertionError("unreachable")


class _WorkerDied(Exception):
    """A worker process or its node ended."""


def _run_workers(
    cluster: RayCluster,
    train: Callable[..., TrainResult],
    recipe: Recipe,
    arguments: Mapping[str, object],
    count: int,
    scratch: Path,
    is_restart: bool,
) -> TrainResult:
    """Run the loop once, in `count` workers. is_restart: raise _WorkerDied if they cannot be started, instead of waiting for nodes"""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    def loop() -> TrainResult:
        return train(recipe, **arguments)

    trainer = TorchTrainer(
        in_directory(loop),
        torch_config=TorchConfig(backend=BACKEND if cluster.gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=bool(cluster.gpus)),
        run_config=RunConfig(
            storage_path=str(scratch),
            # a dead node is counted for some seconds; workers that wait for it then fail, and the next attempt has fewer
            failure_config=FailureConfig(controller_failure_limit=0 if is_restart else -1),
        ),
    )
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        result: object = trainer.fit().return_value
    except TrainingFailedError as e:
        raise _cause(e) from None
    finally:
        if in_main_thread:  # Ray Train sets a handler of its own, and leaves it
            signal.signal(signal.SIGINT, before)
    if result is None:
        raise Stopped("Ray Train was interrupted; the run has the checkpoints that it wrote before")
    return cast(TrainResult, result)


def _cause(error: Exception) -> Exception:
    """What to raise for the error of `TorchTrainer.fit`: what a worker raised, or _WorkerDied if one of them ended."""
    failures = dict[int, Exception](getattr(error, "worker_failures", {}))
    if "Startup" in type(getattr(error, "controller_failure", None)).__name__:
        return _WorkerDied("workers of Ray Train could not be started: a node has gone")
    for failure in failures.values():
        if isinstance(failure, MmtuneError | Stopped) and not isinstance(failure, ProcessEnded):
            return failure
    for rank, failure in failures.items():
        if isinstance(failure, ProcessEnded) or hasattr(failure, "health_check_failure"):
            return _WorkerDied(f"a worker of Ray Train has died (rank {rank}: {str(failure).strip().partition(chr(10))[0]})")
    return error
