"""What a recipe does a second on this machine with its own rows, and what it waits for."""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.data.loader.batch_plan import plan
from mmtune.data.loader.loader import Loader
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import RecipeError
from mmtune.model import artifact
from mmtune.model.prompts import for_training
from mmtune.recipe.recipe import Recipe, load_recipe, parse
from mmtune.run import augmentations, choose_pairs, train, trained_modalities, usable_rows
from mmtune.runtime.distributed import launched_world_size
from mmtune.runtime.files import read_jsonl

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
    recipe: "Recipe | dict[str, Any] | str | Path", overrides: Sequence[str] = (), *, steps: int = 16, quiet: bool = True
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
    whole = load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else recipe
    document = (whole if isinstance(whole, Recipe) else parse(whole)).model_dump(mode="json")
    document |= {"mining": None, "interpolate": False, "gate": None}
    document["data"] |= {"val": None, "general": None, "cache": 0}
    document["tune"] = _without_stages(document["tune"])
    model, data, batches, loading = _load(parse(document), steps)
    document["train"] |= {"epochs": (steps + WARM) / batches, "checkpoint_every": None, "patience": None}
    embedding = _embed(model, data, quiet)
    with tempfile.TemporaryDirectory() as scratch:
        document["run"]["dir"] = str(Path(scratch) / "run")
        train(document, quiet=quiet)
        rows = read_jsonl(Path(scratch) / "run" / "metrics.jsonl")[WARM:]
    speed, wait = (statistics.median(r[k] for r in rows) for k in ("pairs_per_second", "wait"))
    size = document["train"]["batch_size"]
    return Speed(speed, wait, loading, embedding, _memory(), size, len(rows))


def _without_stages(tune: Any) -> Any:
    if not isinstance(tune, dict):
        return tune
    return {k: 0.0 if k == "head_first" else _without_stages(v) for k, v in tune.items()}


def _load(recipe: Recipe, steps: int) -> "tuple[Model, Data, int, float]":
    """The model, the rows of the first source, the batches of an epoch, and the pairs a second of loading them alone."""
    sources = recipe.data.sources()
    parts = [open_data(s.path) for s in sources]
    data = WeightedConcat(parts, [s.weight for s in sources])
    model = artifact.load(recipe.model)
    pairs = choose_pairs(recipe, model, data)
    trained, usable = trained_modalities(pairs), usable_rows(data, pairs)
    if usable.sum() < 2:
        raise RecipeError(f"{data.spec} has {int(usable.sum())} rows to train on; at least 2 are needed")
    batches = plan(data, usable, recipe.train.batch_size, recipe.train.seed, recipe.data.batches)(0)
    stream = Loader(
        data,
        {m: for_training(model.towers[m].preprocess, model.prompts, m) for m in trained},
        augmentations(recipe, trained, data),
        seed=recipe.train.seed,
        workers=recipe.data.workers,
    )
    some = [batches[i % len(batches)] for i in range(steps + WARM)]
    begin, done = time.perf_counter(), 0
    for number, batch in enumerate(stream.epoch(0, some)):
        if number < WARM:
            begin = time.perf_counter()
        else:
            done += len(batch.ids)
    return model, parts[0], len(batches), done / max(time.perf_counter() - begin, 1e-9)


def _embed(model: "Model", data: "Data", quiet: bool) -> dict[str, float]:
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
