"""Measure the throughput of a recipe on this machine: training, data loading and embedding, and which of them is the bottleneck."""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.data.loader.batch_plan import plan_batches
from mmtune.data.loader.loader import Loader
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.run_block import RunConfig
from mmtune.recipe.tune_block import AnyTuning
from mmtune.run import train
from mmtune.runtime.distributed import launched_world_size
from mmtune.runtime.files import read_jsonl
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


@dataclass
class Throughput(ResultFields):
    """Throughput of one recipe on this machine.

    pairs_per_second: pairs per second in training, median over the steps
    wait: fraction of the time that training waits for data, 0 to 1, median over the steps
    loading: pairs per second of the data loader alone, without a model
    embedding: modality -> items per second when embedding without training
    memory_mb: peak memory in MB, of the GPU if there is one
    batch_size: rows per step, as in the recipe
    steps: number of measured training steps
    """

    pairs_per_second: float
    wait: float
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
        return "data" if self.wait > DATA_BOUND else "towers"

    def __str__(self) -> str:
        embedding = ", ".join(f"{m} {v:,.1f}" for m, v in self.embedding.items())
        advice = {
            "data": "bottleneck: data; try more data.workers, files close to the tower's input size, or a faster disk",
            "towers": "bottleneck: towers; try a smaller model, a `tune` that trains fewer weights, or a GPU",
        }[self.bottleneck]
        return (
            f"training   {self.pairs_per_second:,.1f} pairs/s, batch {self.batch_size}, "
            f"{self.wait:.0%} of the time waiting for data (median of {self.steps} steps of a first epoch)\n"
            f"loading    {self.loading:,.1f} pairs/s without a model\n"
            f"embedding  {embedding} items/s\n"
            f"memory     {self.memory_mb:,.0f} MB peak\n"
            f"{advice}"
        )


def bench(
    recipe: "Recipe | Mapping[str, object] | str | Path", overrides: Sequence[str] = (), *, steps: int = 16, quiet: bool = True
) -> Throughput:
    """Measure the throughput of a recipe on this machine.

    Trains a few steps in a temporary directory, then loads batches without a model, and embeds up to 512 rows. The cache of
    decoded items is off, so every step is as slow as in a first epoch. Validation, mining, interpolation and the head_first stage
    are left out. Outputs that the recipe computes once before training (of teachers and frozen towers) are computed, but not
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
    batches = plan_batches(inputs.indexed, inputs.usable, whole.train.batch_size, whole.train.seed, whole.data.batches)(0)
    loading = _loading_rate(whole, inputs, batches, steps)
    embedding = _embedding_rates(inputs.model, inputs.indexed.sets[0], quiet)
    with tempfile.TemporaryDirectory() as scratch:
        epochs = (steps + WARM_UP) * whole.train.gradient_accumulation_steps / len(batches)
        short = {"epochs": epochs, "checkpoint_every": None, "patience": None}
        run = RunConfig(dir=str(Path(scratch) / "run"), trackers=[])
        train(whole.model_copy(update={"run": run, "train": whole.train.model_copy(update=short)}), quiet=quiet)
        rows = read_jsonl(Path(scratch) / "run" / "metrics.jsonl")[WARM_UP:]
    speed, wait = (statistics.median(r[k] for r in rows) for k in ("pairs_per_second", "wait"))
    return Throughput(speed, wait, loading, embedding, _peak_memory_mb(), whole.train.batch_size, len(rows))


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


def _loading_rate(recipe: Recipe, inputs: TrainingInputs, batches: Sequence[np.ndarray], steps: int) -> float:
    """Measure the data loader without a model, in pairs per second, after WARM_UP batches that are not measured."""
    loader = build_loader(recipe, inputs, cache_bytes=0)
    assert isinstance(loader, Loader), "streamed data were refused"
    some = [batches[i % len(batches)] for i in range(steps + WARM_UP)]
    begin, done = time.perf_counter(), 0
    for number, batch in enumerate(loader.epoch(0, some)):
        if number < WARM_UP:
            begin = time.perf_counter()
        else:
            done += len(batch.ids)
    return done / max(time.perf_counter() - begin, 1e-9)


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
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
