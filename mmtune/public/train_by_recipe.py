"""The public function `train`: once, or with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from mmtune.errors import RecipeError
from mmtune.runtime.openmp_policy import set_openmp_wait_policy

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.recipe.recipe import Recipe
    from mmtune.runtime.ray_cluster import Engine
    from mmtune.sweeps.repeat_seeds import SeedsResult
    from mmtune.training.callbacks import Callback
    from mmtune.training.train_result import TrainResult


@overload
def train(
    recipe: Recipe | Mapping[str, object] | str | Path,
    overrides: Sequence[str] = (),
    *,
    data: DataLike | None = None,
    val: DataLike | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    engine: Engine = "here",
    workers: int | None = None,
    seeds: None = None,
) -> TrainResult: ...


@overload
def train(
    recipe: Recipe | Mapping[str, object] | str | Path,
    overrides: Sequence[str] = (),
    *,
    data: DataLike | None = None,
    val: DataLike | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    engine: Engine = "here",
    workers: int | None = None,
    seeds: int,
) -> SeedsResult: ...


def train(
    recipe: Recipe | Mapping[str, object] | str | Path,
    overrides: Sequence[str] = (),
    *,
    data: DataLike | None = None,
    val: DataLike | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    engine: Engine = "here",
    workers: int | None = None,
    seeds: int | None = None,
) -> TrainResult | SeedsResult:
    """Train by a recipe and return the result: paths, scores and the fingerprint of the trained model.

    The run directory, recipe key `run.dir`, gets recipe.yaml, environment.json, metrics.jsonl, tensorboard/, checkpoints/ and
    artifact/ (the trained model), for losses on class labels of streamed data also classes/.

    recipe: a recipe file, a mapping with the same keys, or a `Recipe`
    overrides: "key.sub=value" strings that replace keys of a recipe file
    data, val: training and validation data in place of the recipe's `data.train` and `data.val`: rows in memory (see `open_data`),
        or packed shards by name
    columns, id, group: as in `open_data`, for rows in memory
    resume: continue an interrupted run from its last checkpoint, with the same result as without the interruption; with more
        train.epochs than before, extend a finished run
    quiet: print no progress
    callbacks: objects whose methods are called during the run (subclasses of `mmtune.training.Callback`), in addition to those of
        the recipe key `run.callbacks`
    engine: "ray" trains in the workers of Ray Train's TorchTrainer, on the cluster of RAY_ADDRESS or on one that is started on this machine
    workers: number of Ray workers; None means one per GPU, or one per CPU core if there is no GPU
    seeds: train this many times, with the seeds train.seed, train.seed + 1, ..., in run.dir/seed-0, run.dir/seed-1, ..., and return a
        `SeedsResult`: the artifacts, and the mean, standard deviation and 95% t-interval of each metric on data.val. `resume` then
        keeps finished runs. `evaluate`, `compare` and `report` take run.dir as a model

    Raises MmtuneError, e.g. if the recipe is invalid, or if the run directory contains a run and `resume` is False.

    Distributed training: start the same call with torchrun or accelerate. All processes must share the run directory. Each of
    them computes a part of every batch. Rank 0 writes the files; the other ranks return its result without the field `result`.
    """
    set_openmp_wait_policy()
    from mmtune.run import train as train_

    if data is not None or val is not None:
        from mmtune.public.recipe_data import with_data

        recipe, overrides = with_data(recipe, overrides, data, val, columns=columns, id=id, group=group)
    if seeds is not None:
        from mmtune.sweeps.repeat_seeds import repeat_seeds

        if engine == "ray":
            raise RecipeError("seeds: trains in this process; leave out engine, or start one run for each train.seed")
        return repeat_seeds(recipe, overrides, seeds=seeds, resume=resume, quiet=quiet, callbacks=callbacks)
    if engine == "ray":
        from mmtune.training.ray_train import train_on_ray

        return train_on_ray(train_, recipe, overrides, resume=resume, quiet=quiet, callbacks=callbacks, workers=workers)
    return train_(recipe, overrides, resume=resume, quiet=quiet, callbacks=callbacks)
