"""Embeddings of the test data by both models, and their comparison. They are computed once and used by all sections."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.comparison.compare_models import ComparedModel, assemble_comparison
from mmtune.comparison.compare_seeds import combine_comparisons, made_once, model_pairs
from mmtune.comparison.compare_tasks import TaskComparison, compare_task
from mmtune.comparison.comparison_result import Comparison
from mmtune.comparison.gate import Gate
from mmtune.contracts import Embeddings, JsonObject
from mmtune.errors import DataError
from mmtune.evaluation.trained_pairs import towers_apart
from mmtune.model.artifact.trained_rows import trained_on
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.judgments import Qrels
from mmtune.relevance.positives import relevant_blocks
from mmtune.reporting.recording_copies import RecordingCopies
from mmtune.reporting.subject import ModelSpec, ReportSubject
from mmtune.reporting.task_section import ReportedTask, TaskSection, section_of, task_section
from mmtune.reporting.window_strip import LocatedRows
from mmtune.search.exact_scores import exact_keys

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

MAX_SLICE_VALUES = 40  # a column with more values is used for slices only if it is named explicitly
MAX_SLICE_COLUMNS = 4
BY_TASK = "by_task"
"""Key of `Measured.document`: the gate with a task that decided, and the difference of its metric."""
SIDES = ("before", "after")
"""Keys for the base model ("before" tuning) and the candidate, usually the tuned model ("after")."""


@dataclass
class Measured:
    """The test data, the comparison, and the embeddings of both models.

    data: the test data
    comparison: the comparison of the two models, with the values of each query
    vectors: vectors[side][modality], for the sides "before" and "after"
    qrels: relevance judgments, if they decide what is relevant instead of rows and groups
    classes: classes[side][modality]: embeddings of captions as class names, if the model has a prompt for class names
    tasks: both models' metrics of other tasks
    by_task: the comparison by the gate's task, which then decides; None: `comparison` or `over_seeds` decides
    over_seeds: the comparison of all seeds, if there are several; then everything else is that of the first seed
    located: scores windows of long recordings by both models
    towers_apart: towers_apart[side]: says that the model of this side retrieves by chance; "" for others
    """

    data: "Data"
    comparison: Comparison
    vectors: dict[str, dict[str, Embeddings]]
    qrels: Qrels | None = None
    classes: dict[str, dict[str, Embeddings]] = field(default_factory=dict)
    tasks: list[TaskSection] = field(default_factory=list)
    by_task: TaskComparison | None = None
    over_seeds: Comparison | None = None
    located: LocatedRows | None = None
    towers_apart: dict[str, str] = field(default_factory=dict)

    @cached_property
    def document(self) -> JsonObject:
        """The comparison by retrieval, of all seeds if there are several, with the verdict of the gate's task, if it has one."""
        by_retrieval = (self.over_seeds or self.comparison).to_dict()
        if self.by_task is None:
            return by_retrieval
        decided = {"gate": self.by_task.gate.to_dict(), "difference": self.by_task.deciding.to_dict()}
        return {**by_retrieval, "verdict": self.by_task.verdict, "reason": self.by_task.reason, BY_TASK: decided}

    @cached_property
    def items(self) -> dict[str, dict[str, Items]]:
        """items[side][modality]. Both sides have the same items in the same order."""
        return {side: {m: unique_items(m, e) for m, e in vectors.items()} for side, vectors in self.vectors.items()}

    @cached_property
    def row_number(self) -> dict[str, int]:
        """{row id: row number in the data}."""
        return {row_id: i for i, row_id in enumerate(self.data.ids)}

    @cached_property
    def item_number(self) -> dict[str, dict[str, int]]:
        """{modality: {item id: position among the items}}, the same for both sides."""
        return {m: {item: i for i, item in enumerate(items.ids)} for m, items in self.items[SIDES[0]].items()}

    @cached_property
    def copies(self) -> RecordingCopies:
        """Decides which rows of the data show the same recording or picture."""
        return RecordingCopies(self.data)

    @property
    def cross_modal_directions(self) -> list[str]:
        """Directions between different modalities. If there is only one modality, all directions."""
        names = list(self.comparison.base.directions)
        return [n for n in names if len(set(n.split("->"))) == 2] or names

    def items_of(self, name: str, side: str) -> tuple[Items, Items]:
        """Return (query items, candidate items) of a direction."""
        a, b = name.split("->")
        return self.items[side][a], self.items[side][b]

    def relevant_items(self, name: str) -> list[np.ndarray]:
        """For each query item of a direction, return the positions of its relevant candidates."""
        queries, candidates = self.items_of(name, "before")
        out: list[np.ndarray] = []
        for part in relevant_blocks(queries, candidates, 4096, self.qrels):
            out.extend(part.items[i] for i in range(part.stop - part.start))
        return out

    def score_keys(self, name: str, side: str, queries_Q: np.ndarray) -> np.ndarray:
        """Return sort keys of the scores of some query items against all candidates, int32 [Q, candidates].

        Within one modality, the query item itself gets the lowest key.
        """
        queries, candidates = self.items_of(name, side)
        keys = exact_keys(queries.query_vectors[queries_Q], candidates.vectors)
        if queries is candidates:
            keys[np.arange(len(keys)), queries_Q] = np.iinfo(np.int32).min
        return keys


def measure(
    subject: ReportSubject,
    slices: Sequence[str] | None = None,
    retention: str | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    qrels: "Qrels | str | Path | None" = None,
    allow_trained: bool = False,
    tasks: Sequence[ReportedTask] = (),
    cluster: str | None = None,
) -> Measured:
    """Embed the test data with both models and compare the models.

    Raises DataError if either model was trained on rows of the test data, unless `allow_trained`.

    slices: metadata columns, or "size:MODALITY"; None chooses columns with few values, and columns that the gate's guards name
    retention: other DATA, on which nothing may be lost; reported as the slice "retention"
    qrels: relevance judgments, or their file; they replace rows and groups in deciding what is relevant
    tasks: other tasks by which both models are evaluated
    cluster: metadata column whose values the intervals of the comparison resample; default: groups and equal content
    """
    from mmtune.data.shards.dataset import open_data
    from mmtune.embedding.embed_rows import embed_classes

    rows = open_data(subject.data)  # type: ignore[arg-type]
    retention = retention or subject.retention
    gate = Gate.read(subject.gate)
    other = open_data(retention) if retention else None
    assert subject.base is not None and subject.candidate is not None, "a subject with data has both models"
    pairs, runs = model_pairs(subject.base, subject.candidate)
    options = functools.partial(
        assemble_comparison,
        data=rows,
        gate=None if gate is not None and gate.task is not None else gate,  # the task decides
        qrels=qrels,
        slices=_slice_columns(rows, gate) if slices is None else slices,
        retention=other,
        batch_size=batch_size,
        quiet=quiet,
        allow_trained=allow_trained,
        cluster=cluster,
    )
    made = made_once(pairs, _compared)
    first = next(made)
    models = {side: c.model for side, c in zip(SIDES, first, strict=True)}
    if runs is None:
        _check_fingerprints(subject, models)
    assembled = options(*first)
    others = [options(*pair).comparison for pair in made]
    over_seeds = combine_comparisons([assembled.comparison, *others], runs.seeds) if runs else None
    classes = {side: embed_classes(models[side], rows, list(assembled.base), batch_size, quiet) for side in SIDES}
    vectors = dict(zip(SIDES, (assembled.base, assembled.candidate), strict=True))
    of_both = (list(models.values()), list(vectors.values()))
    sections = [task_section(*of_both, rows, task, batch_size, quiet, allow_trained) for task in tasks]
    by_task = None
    if gate is not None and gate.task is not None:
        sides = (subject.base, subject.candidate) if runs else of_both[0]
        by_task = compare_task(
            sides[0],
            sides[1],
            rows,
            gate.task,
            gate.task_options,
            gate=gate,
            retention=other,
            cluster=cluster,
            batch_size=batch_size,
            quiet=quiet,
            allow_trained=allow_trained,
            vectors=() if runs else of_both[1],
        )
        sections.insert(0, section_of(by_task))
    located = LocatedRows(models, rows, batch_size)
    by_chance = {side: towers_apart(models[side], assembled.base) for side in SIDES}
    return Measured(
        rows, assembled.comparison, vectors, assembled.qrels, classes, sections, by_task, over_seeds, located, by_chance
    )


def _compared(model: "ModelSpec", side: int) -> ComparedModel:
    """Load a model if it is not loaded yet. side: 0 for the base, 1 for the candidate"""
    from mmtune.model import artifact

    loaded = artifact.load(model) if isinstance(model, str | Path | Mapping) else model
    return ComparedModel(loaded, ("the base", "the candidate")[side], trained_on(loaded))


def _check_fingerprints(subject: ReportSubject, models: "Mapping[str, Model]") -> None:
    """Raise DataError if the comparison's JSON file was made with other models than the given ones."""
    marks = subject.document.get("fingerprints", {})
    for side, key in zip(SIDES, ("base", "candidate"), strict=True):
        fingerprint = models[side].fingerprint
        if marks.get(key, fingerprint) != fingerprint:
            raise DataError(
                f"{subject.title}: the comparison was made with the {key} {marks[key]}, but the given --{key} is {fingerprint}"
            )


def _slice_columns(data: "Data", gate: Gate | None) -> list[str]:
    """Choose metadata columns for slices: those with 2 to MAX_SLICE_VALUES values, fewest values first.

    Columns that guards such as "kind=even" name are always included.
    """
    guarded = [g.partition("=")[0] for g in ((gate.guards if gate else None) or {}) if "=" in g]
    values: dict[str, set[str]] = {}
    for i in range(min(len(data), 20_000)):  # the first rows are enough to find columns with few values
        for name, value in data.meta(i).items():
            if isinstance(value, str | int | float | bool) and len(values.setdefault(name, set())) <= MAX_SLICE_VALUES:
                values[name].add(str(value))
    few = sorted((len(v), n) for n, v in values.items() if 2 <= len(v) <= MAX_SLICE_VALUES)
    return list(dict.fromkeys([*guarded, *(n for _, n in few[:MAX_SLICE_COLUMNS])]))
