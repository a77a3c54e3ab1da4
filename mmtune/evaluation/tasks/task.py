"""Evaluation tasks other than retrieval: the table of tasks, their base class, their inputs and their results."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings, JsonObject
from mmtune.data.decode import decode_row
from mmtune.embedding.embed_rows import embed_data, shared_modalities
from mmtune.errors import DataError, DataWarning, RecipeError
from mmtune.evaluation.leakage import refuse_shared_rows
from mmtune.evaluation.model_and_data import as_data
from mmtune.relevance.items import take_rows
from mmtune.runtime import plugins
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

RETRIEVAL = "retrieval"
"""Name of the default task, which computes retrieval metrics in every direction."""

TASKS: "dict[str, type[EvaluationTask] | str]" = {
    "zero_shot": "mmtune.evaluation.tasks.zero_shot:ZeroShot",
    "knn": "mmtune.evaluation.tasks.knn:NearestNeighbours",
    "anomaly": "mmtune.evaluation.tasks.anomaly:AnomalyDetection",
}
"""{task name: class, or "package.module:Class"}"""


@runtime_checkable
class TaskScores(Protocol):
    """Interface of a task's result for one modality."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """{metric name: value}; higher is better."""
        ...

    def to_dict(self) -> JsonObject:
        """Return this modality's part of the JSON document of `mmtune eval --task`."""
        ...


@runtime_checkable
class RowScores(TaskScores, Protocol):
    """Interface of a result that knows its rows, so that intervals and comparisons are possible.

    row_ids: [N], ids of the scored rows or items
    """

    row_ids: list[str]

    def weighted_metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Return the metrics if row i occurred weights[i] times [N]. Raises DataError if they are not defined."""
        ...


@dataclass
class Scores:
    """The simplest result of a task for one modality.

    rows: number of rows that were scored
    skipped: number of rows that could not be scored
    details: further entries of the JSON document
    """

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
    """What a task gets to work on.

    modalities: the modalities to score, which both the model and the data have
    vectors: {modality: embeddings of all rows of the data} that were computed before, which `embed` then takes
    """

    model: "Model"
    data: "Data"
    modalities: list[str]
    batch_size: int = 64
    quiet: bool = True
    processes: Processes = SINGLE_PROCESS
    vectors: Mapping[str, Embeddings] = field(default_factory=dict)

    def embed(self, data: "Data | None" = None, keep: np.ndarray | None = None) -> dict[str, Embeddings]:
        """Embed the modalities of the rows `keep` (bool [N], default: all) of `data` (default: the evaluated data)."""
        known = self._known(keep) if data is None else {}
        data = self.data if data is None else data
        missing = [m for m in self.modalities if m not in data.modalities]
        if missing:
            raise DataError(f"{data.spec}: has no {missing[0]}; it has {', '.join(data.modalities)}")
        rows, wanted = data if keep is None else data.subset(keep), [m for m in self.modalities if m not in known]
        made = embed_data(self.model, rows, wanted, self.batch_size, self.quiet, processes=self.processes) if wanted else {}
        return {m: known[m] if m in known else made[m] for m in self.modalities}

    def _known(self, keep: np.ndarray | None) -> dict[str, Embeddings]:
        """The embeddings of the rows `keep` of the evaluated data that were computed before."""
        known = {m: e for m, e in self.vectors.items() if m in self.modalities}
        if keep is None:
            return known
        return {m: take_rows(e, np.flatnonzero(keep[self.data.present[m]])) for m, e in known.items()}

    def column(self, name: str) -> list[str | None]:
        """Return a value for every row of the evaluated data, see `row_values`."""
        return row_values(self.data, name)

    def reference_data(self, reference: "Data | str", exclude_same: str | None = None) -> "Data":
        """Open DATA with reference rows.

        Raises DataError if it shares a row, or a value of column `exclude_same`, with the task's data.
        """
        opened = as_data(reference)
        refuse_shared_rows(self.data, opened, [m for m in self.modalities if m in opened.modalities], exclude_same)
        return opened


class EvaluationTask:
    """Base class of evaluation tasks.

    Make the subclass a dataclass: its fields are the task's options. Add it with `register_task("name", Class)`, or use
    "package.module:Class" as the task's name.
    """

    def choose_modalities(self, model: "Model", data: "Data", wanted: Sequence[str] | None) -> list[str]:
        """Return the modalities to score: `wanted`, or else all that model and data share, text only if there is no other."""
        shared = shared_modalities(model, data, wanted)
        return shared if wanted else [m for m in shared if not modalities.get(m).language] or shared

    def run(self, inputs: TaskInputs) -> "Mapping[str, TaskScores]":
        """Return {modality: scores}. Rows that the model was trained on have been refused before this call."""
        raise NotImplementedError


def register_task(name: str, task: "type[EvaluationTask] | str") -> None:
    """Add a task, for `evaluate(..., task=name)` and `mmtune eval --task name`."""
    plugins.register(TASKS, name, task, "task")


def find_task(name: str) -> type[EvaluationTask]:
    """Return the class of the task `name`, or the class at "package.module:Class". Raises RecipeError for anything else."""
    if name not in TASKS and not plugins.is_target(name):
        raise RecipeError(f"unknown task {name!r}; there are: {', '.join([RETRIEVAL, *TASKS])} (or package.module:Class)")
    part = plugins.resolve(TASKS, name, "task", key="task")
    if not (isinstance(part, type) and issubclass(part, EvaluationTask)):
        raise RecipeError(f"task {name!r}: {part!r} is not a subclass of mmtune.evaluation.EvaluationTask")
    return part


def row_values(data: "Data", name: str) -> list[str | None]:
    """Return a string or None for every row: the value of a metadata column, of "group", or of a text modality."""
    if name in data.present and modalities.get(name).language:
        return [str(decode_row(data, int(i), name)) if data.present[name][i] else None for i in range(len(data))]
    return [None if v in (None, "") else str(v) for v in (data.groups if name == "group" else data.column(name))]


def rows_with_value(data: "Data", column_value: str) -> np.ndarray:
    """bool [N]: which rows have the value. column_value: "COLUMN=VALUE". Raises DataError, with the values there are, if none has."""
    name, _, value = column_value.partition("=")
    values = row_values(data, name)
    found = np.array([v == value for v in values], bool)
    if not found.any():
        some = sorted({v for v in values if v is not None})
        raise DataError(
            f"{data.spec}: no row has {column_value}; there are: {', '.join(some[:8])}{', ...' if some[8:] else ''}"
        )
    return found


def class_labels(data: "Data", label: str) -> tuple[list[str | None], np.ndarray]:
    """Return (the class of each row, bool [N]: which rows have one). Raises DataError for fewer than two classes."""
    labels = row_values(data, label)
    if len({c for c in labels if c is not None}) < 2:
        raise DataError(f"{data.spec}: {label!r} has fewer than two classes, so there is nothing to classify")
    return labels, np.array([c is not None for c in labels], bool)


def grouped_by_class(data: "Data", vectors: Mapping[str, Embeddings], labels: Sequence[str | None]) -> dict[str, Embeddings]:
    """Return the vectors with groups replaced by the rows' classes."""
    class_of = dict(zip(data.ids, labels, strict=True))
    return {
        m: replace(e, groups=[class_of[i] for i in e.ids], labels={k: v for k, v in e.labels.items() if k != "group"})
        for m, e in vectors.items()
    }


def check_neighbours(neighbours: int) -> None:
    """Raise RecipeError unless `neighbours` is at least 1."""
    if neighbours < 1:
        raise RecipeError(f"neighbours: {neighbours} is not 1 or more")


def warn_of_neighbours(given: int | None, references: int) -> None:
    """Issue a DataWarning if more neighbours were asked for than there are references. given: None for the default"""
    if given is not None and given > references:
        warnings.warn(
            f"neighbours: there are {references} references for {given} neighbours, so that all of them count for every row",
            DataWarning,
            stacklevel=3,
        )
