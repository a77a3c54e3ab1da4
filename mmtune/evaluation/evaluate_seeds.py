"""Evaluate the models of several seeds of one recipe: mean, standard deviation and an interval of the mean of every metric."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.evaluation.result import Result
from mmtune.evaluation.seed_statistics import SeedRuns, Spread, spread_of, spread_table
from mmtune.evaluation.tasks.evaluate_task import TaskResult

if TYPE_CHECKING:
    import pandas


@dataclass
class SeedsEvaluation:
    """The evaluation of several seeds of one recipe on the same data.

    directory: the directory of the runs
    seeds: the seeds
    models: the model of each seed
    scores: {"a->b": {metric: mean, sd and 95% t-interval over the seeds}}; with slices also "a->b | slice", and for a Matryoshka
        model "a->b | N dims". For a task the names are modalities.
    results: the result of each seed
    """

    directory: str
    seeds: list[int]
    models: list[str]
    scores: dict[str, dict[str, Spread]]
    results: list[Result] | list[TaskResult] = field(repr=False)

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune eval --json` for several seeds."""
        return {
            "seeds": self.seeds,
            "models": self.models,
            "fingerprints": [r.fingerprint for r in self.results],
            "scores": self.scores,
            "results": [r.to_dict() for r in self.results],
        }

    def metric(self, name: str, direction: str | None = None) -> Spread:
        """Return one metric over the seeds: of one direction, or as each result gives it without one (see `Result.metric`)."""
        return spread_of([r.metric(name, direction) for r in self.results])

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per direction (or modality) and metric, with mean, sd, low and high, and a column for each seed."""
        import pandas

        rows = []
        for where, metrics in self.scores.items():
            for metric, s in metrics.items():
                each = {f"seed {seed}": v for seed, v in zip(self.seeds, s["values"], strict=True)}
                numbers = {"mean": s["mean"], "sd": s["sd"], "low": s["low"], "high": s["high"]}
                rows.append({"where": where, "metric": metric, **numbers, **each})
        return pandas.DataFrame(rows)

    def _shown(self) -> dict[str, Spread]:
        """The scores of the printed table: of retrieval not every cut-off."""
        first = self.results[0]
        columns = first.columns() if isinstance(first, Result) else None
        shown = {where: {m: s for m, s in of.items() if columns is None or m in columns} for where, of in self.scores.items()}
        return {f"{where}  {m}": s for where, of in shown.items() for m, s in of.items()}

    def __str__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.directory}: {len(self.seeds)} seeds ({seeds})\n\n{spread_table(self._shown())}"


def evaluate_seeds(runs: SeedRuns, evaluate: Callable[[str], Result | TaskResult]) -> SeedsEvaluation:
    """Evaluate the model of each seed.

    evaluate: evaluates one model
    """
    results = [evaluate(model) for model in runs.artifacts]
    tables = [metric_table(r) for r in results]
    scores = {
        where: {m: spread_of([t[where][m] for t in tables]) for m in metrics if all(m in t[where] for t in tables)}
        for where, metrics in tables[0].items()
        if all(where in t for t in tables)
    }
    return SeedsEvaluation(str(runs.directory), list(runs.seeds), runs.artifacts, scores, results)  # type: ignore[arg-type]


def metric_table(result: Result | TaskResult) -> dict[str, dict[str, float]]:
    """Return {where: {metric: value}} of a result; see `SeedsEvaluation.scores` for the names."""
    if isinstance(result, TaskResult):
        return {m: {n: float(v) for n, v in scores.metrics.items()} for m, scores in result.results.items()}
    table = {}
    for name, direction in result.directions.items():
        table[name] = direction.metrics
        table |= {f"{name} | {part}": s.metrics for part, s in result.slices.get(name, {}).items()}
        table |= {f"{name} | {dim} dims": r.directions[name].metrics for dim, r in result.dims.items() if name in r.directions}
    return table
