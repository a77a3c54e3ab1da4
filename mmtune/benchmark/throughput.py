"""What a recipe does a second on this machine with its own rows, and what it waits for."""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.data.loader.batch_plan import plan_batches
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.train_block import RunConfig
from mmtune.recipe.tune_block import AnyTuning
from mmtune.run import train
from mmtune.runtime.distributed import launched_world_size
from mmtune.runtime.files import read_jsonl
from mmtune.training.training_inputs import TrainingInputs, build_loader, open_inputs

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


WARM = 4  # steps before the clock starts
ROWS = 512  # at most so many are embedded
STARVED = 0.1  # share of the time from which waiting for data is what holds training up


@dataclass
class Speed:
    """Rates of one recipe: medians over its steps; loading takes place without a model, embedding without training."""

    pairs_per_second: float
    wait: float
    loading: float
    embedding: dict[str, float]
    memory_mb: float
    batch_size: int
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `mmtune bench`."""
        return {**vars(self), "holds_up": self.holds_up}

    @property
    def holds_up(self) -> str:
        """ "data" where training waits for them for more than a tenth of its time, else "towers"."""
        return "data" if self.wait > STARVED else "towers"

    def __str__(self) -> str:
        embedding = ", ".join(f"{m} {v:,.1f}" for m, v in self.embedding.items())
        hint = {
            "data": "it waits for data: more data.workers, files near the tower's size, a nearer disk",
            "towers": "the towers take the time: a smaller one, `tune` less of it, or an accelerator",
        }[self.holds_up]
        return (
            f"training   {self.pairs_per_second:,.1f} pairs/s, batch {self.batch_size}, "
            f"{self.wait:.0%} of the time waiting for data (median of {self.steps} steps of a first epoch)\n"
            f"loading    {self.loading:,.1f} pairs/s by itself\n"
            f"embedding  {embedding} a second\n"
            f"memory     {self.memory_mb:,.0f} MB at most\n"
            f"{hint}"
        )


def bench(
    recipe: "Recipe | Mapping[str, object] | str | Path", overrides: Sequence[str] = (), *, steps: int = 16, quiet: bool = True
) -> Speed:
    """Train a recipe for a few steps in a directory that is removed, load its rows without a model, embed some; see `Speed`.

    Nothing is kept in memory from step to step, so each is one of a first epoch. Validation, mining rounds, interpolation and a
    stage of the heads are left out; what the recipe computes once beforehand (teachers' outputs, features of frozen towers) is
    computed. Raises RecipeError for fewer than one step and under torchrun.
    """
    if steps < 1:
        raise RecipeError(f"--steps {steps}: is not 1 or more")
    if launched_world_size() > 1:
        raise RecipeError("bench measures one process; of several, `mmtune train` prints the pairs/s")
    whole = _first_epoch_only(Recipe.read(recipe, overrides))
    inputs = open_inputs(whole)
    batches = plan_batches(inputs.data, inputs.usable, whole.train.batch_size, whole.train.seed, whole.data.batches)(0)
    loading = _loading_rate(whole, inputs, batches, steps)
    embedding = _embedding_rates(inputs.model, inputs.data.sets[0], quiet)
    with tempfile.TemporaryDirectory() as scratch:
        short = {"epochs": (steps + WARM) / len(batches), "checkpoint_every": None, "patience": None}
        run = RunConfig(dir=str(Path(scratch) / "run"))
        train(whole.model_copy(update={"run": run, "train": whole.train.model_copy(update=short)}), quiet=quiet)
        rows = read_jsonl(Path(scratch) / "run" / "metrics.jsonl")[WARM:]
    speed, wait = (statistics.median(r[k] for r in rows) for k in ("pairs_per_second", "wait"))
    return Speed(speed, wait, loading, embedding, _memory(), whole.train.batch_size, len(rows))


def _first_epoch_only(recipe: Recipe) -> Recipe:
    """The recipe without what happens between epochs, before the training and after it, and without kept items."""
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
    """Pairs a second of loading batches without a model, after WARM batches that do not count."""
    loader = build_loader(recipe, inputs, cache_bytes=0)
    some = [batches[i % len(batches)] for i in range(steps + WARM)]
    begin, done = time.perf_counter(), 0
    for number, batch in enumerate(loader.epoch(0, some)):
        if number < WARM:
            begin = time.perf_counter()
        else:
            done += len(batch.ids)
    return done / max(time.perf_counter() - begin, 1e-9)


def _embedding_rates(model: "Model", data: "Data", quiet: bool) -> dict[str, float]:
    """Items a second of every modality that model and rows share, after a batch that does not count."""
    found = {}
    for m in [m for m in data.modalities if m in model.towers]:
        rows = np.flatnonzero(data.present[m])[:ROWS]
        embed_data(model, data.subset(rows[:64]), [m])
        begin = time.perf_counter()
        embed_data(model, data.subset(rows), [m], quiet=quiet)
        found[m] = len(rows) / (time.perf_counter() - begin)
    return found


def _memory() -> float:
    """The most that this process has had so far, MB; with an accelerator, of its memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
