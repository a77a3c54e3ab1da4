"""Repeat a run with several seeds: how much of a difference is luck. Each run has its own directory RUN/seed-N."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtune.errors import RecipeError
from mmtune.evaluation.seed_statistics import SEEDS_FILE, Spread, spread_of, spread_table
from mmtune.recipe.recipe import Recipe
from mmtune.run import train
from mmtune.runtime.distributed import Processes, init_processes, is_restarted
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.results import ResultFields
from mmtune.sweeps.search_space import with_values
from mmtune.training.callbacks import Callback

DONE = "scores.json"


@dataclass
class SeedsResult(ResultFields):
    """Runs of one recipe with several seeds.

    seeds: the seeds
    artifacts: the model of each seed
    scores: {"direction metric": the score of each seed on data.val}
    spread: {"direction metric": mean, sd and 95% t-interval over the seeds}
    """

    seeds: list[int]
    artifacts: list[str]
    scores: dict[str, list[float]]
    spread: dict[str, Spread]

    def __str__(self) -> str:
        title = f"{len(self.seeds)} seeds ({', '.join(map(str, self.seeds))}): mean, sd, 95% t-interval of the mean"
        return "\n".join([title, "", spread_table(self.spread), "", *self.artifacts])


def repeat_seeds(
    recipe: "Recipe | Mapping[str, object] | str | Path",
    overrides: Sequence[str] = (),
    *,
    seeds: int,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> SeedsResult:
    """Train a recipe with the seeds train.seed, train.seed + 1, ... in run.dir/seed-0, seed-1, ..., and compute the spread of its scores.

    seeds: number of runs
    resume: keep finished runs and continue the interrupted one
    callbacks: objects whose methods are called during every run

    Raises RecipeError without data.val. Writes run.dir/seeds.json. Several processes train each run together, as in `train`.
    """
    if seeds < 1:
        raise RecipeError(f"seeds: {seeds} is not 1 or more")
    checked = Recipe.read(recipe, overrides)
    if not checked.data.val:
        raise RecipeError("data.val: seeds are compared by their scores on validation data; set it")
    with init_processes() as processes:
        return _repeat(checked, seeds, resume or is_restarted(), quiet, callbacks, processes)


def _repeat(
    checked: Recipe, seeds: int, resume: bool, quiet: bool, callbacks: Sequence[Callback], processes: Processes
) -> SeedsResult:
    root = Path(checked.run.dir)
    numbers = [checked.train.seed + i for i in range(seeds)]
    scores: dict[str, list[float]] = {}
    artifacts = []
    for i, seed in enumerate(numbers):
        directory = root / f"seed-{i}"
        done = directory / DONE
        if processes.broadcast(resume and done.is_file()):
            found = read_json(done)
        else:
            document = with_values(checked.model_dump(mode="json"), {"run.dir": str(directory), "train.seed": seed})
            result = train(document, resume=resume and (directory / "checkpoints").exists(), quiet=quiet, callbacks=callbacks)
            directions = result.result.directions if result.result else {}  # rank 0 alone has the typed result
            found = processes.broadcast({f"{d} {m}": float(v) for d, x in directions.items() for m, v in x.metrics.items()})
            if processes.is_main_process:
                write_json(done, found)
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
        artifacts.append(str(directory / "artifact"))
    spread = {name: spread_of(values) for name, values in scores.items()}
    out = SeedsResult(numbers, artifacts, scores, spread)
    if processes.is_main_process:
        write_json(root / SEEDS_FILE, out.to_dict())
    return out
