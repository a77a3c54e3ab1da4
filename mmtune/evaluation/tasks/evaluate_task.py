"""Run an evaluation task: check its options, refuse rows that the model was trained on, and collect the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings, JsonObject
from mmtune.errors import RecipeError
from mmtune.evaluation.leakage import refuse_trained_rows, row_identity
from mmtune.evaluation.tasks.task import RETRIEVAL, TASKS, EvaluationTask, TaskInputs, TaskScores, find_task
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    import pandas

    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

RETRIEVAL_OPTIONS = ("slices", "qrels", "trec", "group_pooling", "metrics", "queries", "exclude_same")
"""Options of `evaluate` for retrieval. A task accepts one of them only if it has a field of that name."""


@dataclass
class TaskResult:
    """The result of one task on one model.

    results: {modality: scores}
    settings: the dataset and the options that were given
    clusters: {row id: value of the metadata column whose values intervals resample}; None: single rows
    cluster: this column
    """

    task: str
    fingerprint: str
    results: dict[str, TaskScores]
    settings: JsonObject = field(default_factory=dict)
    clusters: dict[str, str | None] | None = field(default=None, repr=False)
    cluster: str | None = None

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune eval --task`."""
        results = {m: scores.to_dict() for m, scores in self.results.items()}
        return {"task": self.task, "fingerprint": self.fingerprint, "settings": self.settings, "results": results}

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per modality, one column per metric."""
        import pandas

        index = pandas.Index(list(self.results), name="modality")
        return pandas.DataFrame([dict(scores.metrics) for scores in self.results.values()], index=index)

    def metric(self, name: str, modality: str | None = None) -> float:
        """Return one metric, e.g. accuracy, macro_f1, auroc or partial_auroc, of one modality (default: the only one)."""
        if modality is None and len(self.results) > 1:
            raise RecipeError(f"{name}: name a modality, because several were scored: {', '.join(self.results)}")
        scores = self.results.get(modality or next(iter(self.results)))
        if scores is None:
            raise RecipeError(f"{modality!r} was not scored; there are: {', '.join(self.results)}")
        if name not in scores.metrics:
            raise RecipeError(f"no metric {name!r} of {self.task}; there are: {', '.join(scores.metrics)}")
        return float(scores.metrics[name])

    def __str__(self) -> str:
        return "\n\n".join(str(scores) for scores in self.results.values())

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        names = list(dict.fromkeys(n for scores in self.results.values() for n in scores.metrics))
        rows = [[m, *(f"{s.metrics[n]:.4f}" if n in s.metrics else "" for n in names)] for m, s in self.results.items()]
        return html_table(["modality", *names], rows, caption=f"{self.task}, model {self.fingerprint[:12]}")


def evaluate_task(
    model: "Model",
    data: "Data",
    task: str,
    options: Mapping[str, object],
    *,
    trained: "Mapping[str, np.ndarray] | None" = None,
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    allow_trained: bool = False,
    processes: Processes = SINGLE_PROCESS,
    vectors: "Mapping[str, Embeddings] | None" = None,
) -> TaskResult:
    """Run `task` for `model` on `data`.

    options: the task's options by name, see the classes in `TASKS`; None and empty lists count as not given
    trained: labels of the rows that the model was trained on; these rows are refused, unless `allow_trained`
    processes: processes that all make this call; each embeds a share of the rows, and all get the result
    vectors: {modality: the model's embeddings of all rows of `data`}, so that these are not computed again

    Raises RecipeError for an option of another task, and DataError if rows cannot be scored.
    """
    check_options(task, options)
    given = {name: value for name, value in options.items() if is_given(value)}
    runner = find_task(task)(**given)
    names = runner.choose_modalities(model, data, modalities)
    refuse_trained_rows({m: row_identity(data, m) for m in names}, trained, "the model", allow_trained)
    results = dict(runner.run(TaskInputs(model, data, names, batch_size, quiet, processes, vectors or {})))
    for m, scores in results.items():
        if not isinstance(scores, TaskScores):
            raise RecipeError(
                f"task {task}: returned {type(scores).__name__} for {m}; it needs `metrics` and `to_dict`, as "
                "mmtune.evaluation.Scores has"
            )
    settings = {name: getattr(value, "spec", value) for name, value in given.items()}
    return TaskResult(task, model.fingerprint, results, {"data": data.spec, **settings})


def options_of(task: str) -> list[str]:
    """Return the names of a task's options."""
    return _field_names(find_task(task)) if task != RETRIEVAL else list(RETRIEVAL_OPTIONS)


def check_options(task: str, options: Mapping[str, object], prefix: str = "") -> None:
    """Raise RecipeError for an unknown task, or for a given option that the task does not have.

    prefix: what stands before an option's name in messages, e.g. "gate.task_options."
    """
    known = options_of(task)
    for option, value in options.items():
        if is_given(value) and option not in known:
            owners = [t for t in [RETRIEVAL, *TASKS] if option in options_of(t)]
            where = (
                f"is an option of task {' or '.join(owners)}, not of {task}" if owners else f"is not an option of task {task}"
            )
            raise RecipeError(f"{prefix}{option}: {where}{'' if owners else '; it has: ' + (', '.join(known) or 'none')}")


def _field_names(task: type[EvaluationTask]) -> list[str]:
    return [f.name for f in fields(task)] if is_dataclass(task) else []


def is_given(value: object) -> bool:
    """Return whether an option has a value: None and empty lists count as not given."""
    return value is not None and value != () and value != []
