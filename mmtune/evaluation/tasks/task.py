"""Evaluation tasks other than retrieval: the table, what a task is given, and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings, JsonObject
from mmtune.data.decode import decode_row
from mmtune.embedding.embed_rows import embed_data, shared_modalities
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.leakage import refuse_shared_rows
from mmtune.evaluation.model_and_data import as_data
from mmtune.runtime import plugins
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

RETRIEVAL = "retrieval"
"""The name of the default: metrics of every direction instead of a task."""

TASKS: "dict[str, type[EvaluationTask] | str]" = {
    "zero_shot": "mmtune.evaluation.tasks.zero_shot:ZeroShot",
    "knn": "mmtune.evaluation.tasks.knn:NearestNeighbours",
    "anomaly": "mmtune.evaluation.tasks.anomaly:AnomalyDetection",
}
"""Task name -> its class, or "package.module:Class"."""


@runtime_checkable
class TaskScores(Protocol):
    """What a task finds out about one modality."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metric name -> value, higher is better."""
        ...

    def to_dict(self) -> JsonObject:
        """As part of the JSON document of `mmtune eval --task`."""
        ...


@dataclass
class Scores:
    """TaskScores of the simplest kind. rows: those that were scored; skipped: those that could not be."""

    metrics: dict[str, float]
    rows: int = 0
    skipped: int = 0
    details: JsonObject = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        return {"rows": self.rows, "skipped": self.skipped, **self.metrics, **self.details}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items()) + f" ({self.rows:,} rows)"


@dataclass
class TaskInputs:
    """What a task works on. modalities: those to be scored, which model and data both have."""

    model: "Model"
    data: "Data"
    modalities: list[str]
    batch_size: int = 64
    quiet: bool = True
    processes: Processes = SINGLE_PROCESS

    def embed(self, data: "Data | None" = None, keep: np.ndarray | None = None) -> dict[str, Embeddings]:
        """Vectors of the modalities for the rows `keep` (bool [N], default: all) of `data` (default: the task's data)."""
        data = self.data if data is None else data
        missing = [m for m in self.modalities if m not in data.modalities]
        if missing:
            raise DataError(f"{data.spec}: has no {missing[0]}; it has {', '.join(data.modalities)}")
        rows = data if keep is None else data.subset(keep)
        return embed_data(self.model, rows, self.modalities, self.batch_size, self.quiet, processes=self.processes)

    def column(self, name: str) -> list[str | None]:
        """A value of every row of the data, see `row_values`."""
        return row_values(self.data, name)

    def reference_data(self, reference: "Data | str", exclude_same: str | None = None) -> "Data":
        """DATA that the task's rows are judged by. DataError when the two share a row, or a value of column `exclude_same`."""
        opened = as_data(reference)
        refuse_shared_rows(self.data, opened, [m for m in self.modalities if m in opened.modalities], exclude_same)
        return opened


class EvaluationTask:
    """A way to judge a model by other numbers than retrieval metrics.

    Make the subclass a dataclass: its fields are the task's options. Add it with `register_task("name", Class)`, or name it as
    "package.module:Class" where the task's name would stand.
    """

    def choose_modalities(self, model: "Model", data: "Data", wanted: Sequence[str] | None) -> list[str]:
        """The modalities to score: the wanted ones, else all that both have; text only if there is nothing else."""
        shared = shared_modalities(model, data, wanted)
        return shared if wanted else [m for m in shared if not modalities.get(m).language] or shared

    def run(self, inputs: TaskInputs) -> "Mapping[str, TaskScores]":
        """Scores by modality. Rows that the model was trained on have been refused already."""
        raise NotImplementedError


def register_task(name: str, task: "type[EvaluationTask] | str") -> None:
    """Add a task, for `evaluate(..., task=name)` and `mmtune eval --task name`."""
    plugins.register(TASKS, name, task, "task")


def find_task(name: str) -> type[EvaluationTask]:
    """The class of the task `name`, or at "package.module:Class". RecipeError for anything else."""
    if name not in TASKS and not plugins.is_target(name):
        raise RecipeError(f"task {name!r}: there are: {', '.join([RETRIEVAL, *TASKS])} (or package.module:Class)")
    part = plugins.resolve(TASKS, name, "task", key="task")
    if not (isinstance(part, type) and issubclass(part, EvaluationTask)):
        raise RecipeError(f"task {name!r}: {part!r} is no subclass of mmtune.evaluation.EvaluationTask")
    return part


def row_values(data: "Data", name: str) -> list[str | None]:
    """Strings of every row: of a metadata column, of "group", or of a text modality; None where a row has no value."""
    if name in data.present and modalities.get(name).language:
        return [str(decode_row(data, int(i), name)) if data.present[name][i] else None for i in range(len(data))]
    return [None if v in (None, "") else str(v) for v in (data.groups if name == "group" else data.column(name))]


def class_labels(data: "Data", label: str) -> tuple[list[str | None], np.ndarray]:
    """(the class of each row, which rows have one [N] bool). DataError for fewer than two classes."""
    labels = row_values(data, label)
    if len({c for c in labels if c is not None}) < 2:
        raise DataError(f"{data.spec}: fewer than two classes by {label!r}: nothing to classify")
    return labels, np.array([c is not None for c in labels], bool)


def grouped_by_class(data: "Data", vectors: Mapping[str, Embeddings], labels: Sequence[str | None]) -> dict[str, Embeddings]:
    """The vectors with the rows' classes as groups."""
    class_of = dict(zip(data.ids, labels, strict=True))
    return {
        m: replace(e, groups=[class_of[i] for i in e.ids], labels={k: v for k, v in e.labels.items() if k != "group"})
        for m, e in vectors.items()
    }


def check_neighbours(neighbours: int) -> None:
    """RecipeError unless `neighbours` is 1 or more."""
    if neighbours < 1:
        raise RecipeError(f"neighbours: {neighbours} is not 1 or more")
