"""Measure the throughput of a recipe on this machine: training, data loading and embedding, and which of them is the bottleneck."""

import contextlib
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Batch, JsonObject, LoadTimes
from mmtune.data.loader.batch_plan import plan_batches
from mmtune.data.loader.loader import Loader
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.run_block import RunConfig
from mmtune.recipe.tune_block import AnyTuning
from mmtune.run import train
from mmtune.runtime.devices import local_device
from mmtune.runtime.distributed import launched_world_size
from mmtune.runtime.files import read_jsonl
from mmtune.runtime.prefetch import DeviceCopier
from mmtune.runtime.results import ResultFields
from mmtune.training.training_inputs import TrainingInputs, build_loader, open_inputs

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


WARM_UP = 4
"""Number of warm-up steps, which are not measured."""
MAX_ROWS = 512
"""Maximum number of rows that are embedded for each modality."""
DATA_BOUND = 0.1
"""Data loading counts as the bottleneck if training waits for data for more than this fraction of the time."""
ADVICE = {
    "network": "data.read: stream with data.cache_size keeps shards on disk from the second epoch on; without stream, more data.workers "
    "read more at once. Or copy the shards nearer, or pack smaller files.",
    "disk": "Use a faster disk, smaller files, or more data.workers, which read at once; data.cache keeps decoded items in memory from the second epoch on.",
    "decode": "Use more data.workers if there are free CPUs, and files close to the tower's input size (pack smaller ones).",
    "preprocess": "Use more data.workers if there are free CPUs (data.worker_kind: processes for many), or fewer augmentations.",
    "copy": "Leave out train.micro_batch_size, so that the next batch is copied during the step, or use a smaller input size.",
    "step": "Try a smaller model, a `tune` that trains fewer weights, runtime.threads=auto on a CPU, or a GPU.",
}
"""What to change if a stage is the limit."""


@dataclass
class Throughput(ResultFields):
    """Throughput of one recipe on this machine.

    pairs_per_second: pairs per second in training, median over the steps
    wait: fraction of the time that training waits for data, 0 to 1, median over the steps
    stages: pairs per second of each stage alone, with the recipe's workers: "network" (or "disk") reads bytes, "decode", "preprocess"
        (augmentation included), "copy" to the GPU, "step" (without waiting)
    limit: the stage that limits training
    read_mb_per_second: MB read per second by the data loader alone
    workers: number of threads or processes that load
    loading: pairs per second of the data loader alone, without a model
    embedding: modality -> items per second when embedding without training
    memory_mb: peak memory in MB, of the GPU if there is one
    batch_size: rows per step, as in the recipe
    steps: number of measured training steps
    """

    pairs_per_second: float
    wait: float
    stages: dict[str, float]
    limit: str
    read_mb_per_second: float
    workers: int
    loading: float
    embedding: dict[str, float]
    memory_mb: float
    batch_size: int
    steps: int

    def to_dict(self) -> JsonObject:
        """The fields and `bottleneck`, as `mmtune bench --json` prints them."""
        return {**super().to_dict(), "bottleneck": self.bottleneck}

    @property
    def bottleneck(self) -> str:
        """ "data" if training waits for data for more than a tenth of the time, else "towers"."""
        return "towers" if self.limit == "step" else "data"

    def __str__(self) -> str:
        embedding = ", ".join(f"{m} {v:,.1f}" for m, v in self.embedding.items())
        stages = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.stages.items())
        return (
            f"training   {self.pairs_per_second:,.1f} pairs/s, batch {self.batch_size}, "
            f"{self.wait:.0%} of the time waiting for data (median of {self.steps} steps of a first epoch)\n"
            f"stages     {stages} pairs/s each alone, {self.workers} workers\n"
            f"loading    {self.loading:,.1f} pairs/s without a model, {self.read_mb_per_second:,.1f} MB/s read\n"
            + (f"embedding  {embedding} items/s\n" if embedding else "")
            + f"memory     {self.memory_mb:,.0f} MB peak\n"
            f"bottleneck: {self.bottleneck}; limit: {self.limit}. {ADVICE[self.limit]}"
        )


def bench(
    recipe: "Recipe | Mapping[str, object] | str | Path", overrides: Sequence[str] = (), *, steps: int = 16, quiet: bool = True
) -> Throughput:
    """Measure the throughput of a recipe on this machine.

    Trains a few steps in a temporary directory, then loads batches without a model, and embeds up to 512 rows. The cache of
    decoded items is off, so every step is as slow as in a first epoch. Of streamed data nothing is embedded. Validation, mining,
    interpolation and the head_first stage are left out. Outputs that the recipe computes once before training (of teachers and frozen towers) are computed, but not
    measured.

    recipe, overrides: as in `mmtune.train`
    steps: number of measured training steps, after 4 warm-up steps
    quiet: print no progress

    Raises RecipeError if `steps` is below 1, or if several processes were started with torchrun.
    """
    if steps < 1:
        raise RecipeError(f"--steps {steps}: must be 1 or more")
    if launched_world_size() > 1:
        raise RecipeError(
            "bench measures a single process; with several processes run `mmtune train`, which prints the pairs/s"
        )
    whole = _first_epoch_only(Recipe.read(recipe, overrides))
    inputs = open_inputs(whole)
    loading = _measure_loading(whole, inputs, steps)
    embedding = {} if inputs.is_streamed else _embedding_rates(inputs.model, inputs.indexed.sets[0], quiet)
    with tempfile.TemporaryDirectory() as scratch:
        short = {"samples": loading.samples, "checkpoint_every": None, "patience": None}
        run = RunConfig(dir=str(Path(scratch) / "run"), trackers=[])
        train(whole.model_copy(update={"run": run, "train": whole.train.model_copy(update=short)}), quiet=quiet)
        rows = read_jsonl(Path(scratch) / "run" / "metrics.jsonl")[WARM_UP:]
    speed, wait = (statistics.median(r[k] for r in rows) for k in ("pairs_per_second", "wait"))
    step = statistics.median(r["pairs_per_second"] / max(1 - r["wait"], 1e-9) for r in rows)
    stages = {**loading.stages, "step": step}
    loads = {name: rate for name, rate in stages.items() if name != "step"}
    waits_later = loading.rate_of_source < step  # rows that were read ahead may hide it from these few steps
    limit = min(loads, key=lambda name: loads[name]) if loads and (wait > DATA_BOUND or waits_later) else "step"
    return Throughput(
        speed,
        wait,
        stages,
        limit,
        loading.times.size / 1e6 / loading.pairs * loading.rate,
        loading.workers,
        loading.rate,
        embedding,
        _peak_memory_mb(),
        whole.train.batch_size,
        len(rows),
    )


def _first_epoch_only(recipe: Recipe) -> Recipe:
    """Return the recipe without validation, mining, interpolation, gate, head_first stage and cache."""
    return recipe.model_copy(
        update={
            "mining": None,
            "interpolate": False,
            "gate": None,
            "data": recipe.data.model_copy(update={"val": None, "retention": None, "cache": 0}),
            "tune": _without_head_stage(recipe.tune),
        }
    )


def _without_head_stage(tune: AnyTuning | dict[str, AnyTuning]) -> AnyTuning | dict[str, AnyTuning]:
    if isinstance(tune, dict):
        return {m: t.model_copy(update={"head_first": 0.0, "head_lr": None}) for m, t in tune.items()}
    return tune.model_copy(update={"head_first": 0.0, "head_lr": None})


@dataclass
class _Loading:
    """What the data loader does without a model.

    pairs: pairs that were loaded
    rate: pairs per second; for streamed data at most the rate at which shards are read, as some rows were read ahead
    rate_of_source: pairs per second if only reading took time
    times: what was done for them
    stages: stage -> pairs per second if only this stage took time
    workers: number of threads or processes
    samples: pairs of WARM_UP and the measured steps
    """

    pairs: int
    rate: float
    rate_of_source: float
    times: LoadTimes
    stages: dict[str, float]
    workers: int
    samples: int


def _batches(recipe: Recipe, inputs: TrainingInputs, loader: Loader | StreamLoader, n: int) -> Iterator[Batch]:
    """Load `n` batches, those of further epochs if one has fewer."""
    if isinstance(loader, StreamLoader):
        every = (batch for epoch in itertools.count() for batch in loader.epoch(epoch))
        yield from itertools.islice(every, n)
    else:
        plan = plan_batches(inputs.indexed, inputs.usable, recipe.train.batch_size, recipe.train.seed, recipe.data.batches)(0)
        yield from loader.epoch(0, [plan[i % len(plan)] for i in range(n)])


def _measure_loading(recipe: Recipe, inputs: TrainingInputs, steps: int) -> _Loading:
    """Measure the data loader without a model, after WARM_UP batches that are not measured."""
    loader = build_loader(recipe, inputs, cache_bytes=0)
    begin, pairs, samples, times, copying = time.perf_counter(), 0, 0, LoadTimes(), 0.0
    device = local_device()
    copy = DeviceCopier(device)
    with contextlib.closing(loader):
        for number, batch in enumerate(_batches(recipe, inputs, loader, steps + WARM_UP)):
            samples += len(batch.ids) * recipe.train.gradient_accumulation_steps
            if number < WARM_UP:
                begin = time.perf_counter()
                continue
            pairs += len(batch.ids)
            times.add(batch.times)
            if device.type != "cpu":
                before = time.perf_counter()
                batch.map_tensors(copy)
                copying += time.perf_counter() - before
    seconds = max(time.perf_counter() - begin - copying, 1e-9)
    source = "network" if any("://" in s.path for s in recipe.data.training_sets) else "disk"
    workers = loader.pool.workers
    worked = {"decode": times.decode / workers, "preprocess": times.preprocess / workers}
    if isinstance(loader, StreamLoader):
        stages = {source: loader.reading_rate()}
        rate = min(pairs / seconds, stages[source])
    else:  # the workers read
        worked = {source: times.read / workers, **worked}
        stages, rate = {}, pairs / seconds
    stages |= {name: pairs / t for name, t in worked.items() if t > 0}
    if copying:
        stages["copy"] = pairs / copying
    return _Loading(pairs, rate, stages.get(source, math.inf), times, stages, workers, samples)


def _embedding_rates(model: "Model", data: "Data", quiet: bool) -> dict[str, float]:
    """Measure embedding in items per second, after a warm-up batch, for every modality that both the model and the data have."""
    rates = {}
    for m in [m for m in data.modalities if m in model.towers]:
        rows = np.flatnonzero(data.present[m])[:MAX_ROWS]
        embed_data(model, data.subset(rows[:64]), [m])
        begin = time.perf_counter()
        embed_data(model, data.subset(rows), [m], quiet=quiet)
        rates[m] = len(rows) / (time.perf_counter() - begin)
    return rates


def _peak_memory_mb() -> float:
    """The peak memory of this process so far in MB: GPU memory if there is a GPU, else main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
