"""Public functions from data to a tuned model: pack, open_data, mine, train, soup, bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.benchmark.throughput import Throughput
    from mmtune.contracts import JsonObject, Scorer
    from mmtune.data.pack.pack import PackResult, ProgressCallback
    from mmtune.data.shards.dataset import Data
    from mmtune.mining.mining_result import MiningResult
    from mmtune.model.dual_encoder import Model
    from mmtune.recipe.mining_block import MiningOptions
    from mmtune.recipe.recipe import Recipe
    from mmtune.training.regularise.soup import SoupResult
    from mmtune.training.train_result import TrainResult


def pack(
    source: str | Path,
    out: str | Path,
    *,
    columns: dict[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    split: str | None = None,
    shard_size: str | int = "256MB",
    workers: int = 0,
    max_rejected: float = 0.05,
    options: JsonObject | None = None,
    max_bytes: str | int = "512MB",
    timeout: float = 60.0,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> PackResult:
    """Check SOURCE and pack it into WebDataset shards in `out` (in `out/VALUE` for each value of the column `split`).

    columns: modality -> column; id, group, split: columns. Columns that are not named are found by their usual names.
    options: limits by name, as the modalities declare them. workers: checking processes; 0 or 1 is one, never none: a file that
    crashes its decoder, or takes longer than `timeout` seconds, costs its row and nothing else.
    A shard is closed before it would exceed `shard_size` (one larger row makes a larger shard). Killed and called again, it
    resumes; called again when finished, it checks that nothing has changed. `overwrite` starts anew where another pack wrote.

    Returns counts, reasons and paths. Raises DataError for an unusable source or `out`, and, after everything has been written,
    when more than the fraction `max_rejected` of the rows was rejected.
    """
    from mmtune.data.pack.pack import pack as pack_

    return pack_(
        source,
        out,
        columns=columns,
        id=id,
        group=group,
        split=split,
        shard_size=shard_size,
        workers=workers,
        max_rejected=max_rejected,
        options=options,
        max_bytes=max_bytes,
        timeout=timeout,
        overwrite=overwrite,
        progress=progress,
    )


def open_data(spec: str | PathLike[str] | Sequence[str]) -> Data:
    """Open DATA: a directory of *.tar, a tar, a brace or glob pattern, an fsspec URL of these, or a list of them.

    Raises DataError naming the file: nothing there, no tar, compressed, truncated, not what index.json says, ids twice.
    """
    from mmtune.data.shards.dataset import open_data as open_data_

    return open_data_(spec)


def mine(
    model: Model | str | Path,
    data: Data | str,
    out: str | Path,
    options: MiningOptions | Mapping[str, object] | None = None,
    *,
    verifier: Scorer | str | None = None,
    truth: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    quiet: bool = False,
) -> MiningResult:
    """Embed DATA with MODEL and mine every direction into the Parquet file `out`; its audit lies beside it.

    verifier: an object with score(pairs), "package.module:Class", or a MODEL. truth: a column of the data with the right group
    of every row, to measure guards by where groups are incomplete. Raises MmtuneError. Started by torchrun, the processes embed
    a share each, the first searches and writes.
    """
    from mmtune.mining.mine_model import mine as mine_

    return mine_(model, data, out, options, verifier=verifier, truth=truth, batch_size=batch_size, cache=cache, quiet=quiet)


def train(
    recipe: Recipe | Mapping[str, object] | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Run a recipe (a file, plain data, or a Recipe) and return what came out of it.

    RUN/ gets recipe.yaml, environment.json, metrics.jsonl, tensorboard/, checkpoints/ and artifact/. With `resume` a run that
    was stopped goes on to the same result; without it a RUN that holds a run is refused. Raises MmtuneError.

    Started several times by torchrun or accelerate, the processes train together on the recipe's batches; rank 0 writes, the
    others return its result (without the field `result`). RUN must be one directory for all of them.
    """
    from mmtune.runtime.threads import set_openmp_wait_policy

    set_openmp_wait_policy()  # before torch is imported
    from mmtune.run import train as train_

    return train_(recipe, overrides, resume=resume, quiet=quiet)


def soup(
    models: Sequence[str | Path],
    data: Data | str,
    out: str | Path,
    *,
    how: str = "greedy",
    metric: str = "map",
    batch_size: int = 64,
    quiet: bool = True,
) -> SoupResult:
    """Write the mean of some of `models`, artifacts or MODELs of one base and layout, to the artifact `out`.

    greedy: from the best by `metric` (averaged over the directions between modalities) on `data`, which none of them was
    trained on, down; each joins if the mean does not get worse. uniform: all of them. Raises MmtuneError.
    """
    from mmtune.training.regularise.soup import soup as soup_

    return soup_(models, data, out, how=how, metric=metric, batch_size=batch_size, quiet=quiet)


def bench(
    recipe: Recipe | Mapping[str, object] | str | Path, overrides: Sequence[str] = (), *, steps: int = 16, quiet: bool = True
) -> Throughput:
    """Measure a recipe: train a few steps in a temporary directory, load its rows without a model, embed some rows.

    No decoded items are cached, so each step is one of a first epoch. Validation, mining rounds, interpolation and the
    head_first stage are left out. Raises RecipeError for fewer than one step and under torchrun.
    """
    from mmtune.benchmark.throughput import bench as bench_

    return bench_(recipe, overrides, steps=steps, quiet=quiet)
