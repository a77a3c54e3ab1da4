"""Confusion matrices before and after tuning, limited to the classes with the most mistakes."""

from dataclasses import dataclass

import numpy as np

from mmtune.evaluation.tasks.classified import Classified
from mmtune.evaluation.tasks.classify import classifications
from mmtune.evaluation.tasks.task import class_labels, grouped_by_class
from mmtune.reporting.measured import SIDES, Measured

MAX_CLASSES, MAX_MISTAKES = 16, 10  # classes in a matrix; rows in the table of the most frequent mistakes


@dataclass
class MatrixCell:
    """A cell of a confusion matrix that is not empty.

    x: number of the predicted class
    y: number of the true class
    count: rows in this cell
    share: share of the true class's rows
    """

    x: int
    y: int
    count: int
    share: float


@dataclass
class ConfusionMatrix:
    """Confusion matrix of one model over the classes that are shown.

    side: "before" (base model) or "after" (tuned model)
    accuracy, macro_f1: computed over all classes
    cells: the cells that are not empty
    """

    side: str
    accuracy: float
    macro_f1: float
    cells: list[MatrixCell]


@dataclass
class Mistake:
    """Numbers of rows of class `true` that were predicted as class `predicted`, before and after tuning."""

    true: str
    predicted: str
    before: int
    after: int


@dataclass
class ConfusionSection:
    """One classification task.

    direction: direction of the search that classifies, for example "image->text"
    description: how a row gets its predicted class, as text
    rows: number of classified rows
    classes: number of all classes
    names: names of the classes that are shown
    matrices: one matrix for each model
    mistakes: the most frequent confusions
    """

    direction: str
    description: str
    rows: int
    classes: int
    names: list[str]
    matrices: list[ConfusionMatrix]
    mistakes: list[Mistake]


def confusion_sections(measured: Measured, label: str | None = None) -> list[ConfusionSection]:
    """One section for each classification task that the data allow (see `evaluation.tasks.classify.classifications`).

    label: metadata column whose values are the classes; default: the groups. Raises DataError if it has fewer than two values
    """
    vectors, classes = measured.vectors, measured.classes
    if label is not None:
        labels, _ = class_labels(measured.data, label)
        vectors = {side: grouped_by_class(measured.data, vectors[side], labels) for side in SIDES}
        classes = {side: grouped_by_class(measured.data, classes[side], labels) for side in SIDES if side in classes}
    before, after = (classifications(vectors[side], classes.get(side)) for side in SIDES)
    return [_section(dict(zip(SIDES, pair, strict=True))) for pair in zip(before, after, strict=True)]


def _description(task: Classified) -> str:
    if task.how == "descriptions":
        return f"{task.direction} as classification: each of {task.rows:,} rows is assigned to the class with the nearest description"
    name = task.direction.split("->")[0]
    return f"{name} as classification: each of {task.rows:,} items is assigned to a class by its {task.neighbours} nearest neighbours"


def _section(by_side: dict[str, Classified]) -> ConfusionSection:
    before, after = by_side["before"], by_side["after"]
    mistakes_C = sum((_mistakes_by_class(c) for c in by_side.values()), np.zeros(len(before.classes), np.int64))
    shown = np.sort(np.argsort(-mistakes_C, kind="stable")[:MAX_CLASSES])
    matrices = []
    for side, task in by_side.items():
        part, total = task.confusion[np.ix_(shown, shown)], task.confusion[shown].sum(1)
        cells = [MatrixCell(int(x), int(y), int(part[y, x]), float(part[y, x] / total[y])) for y, x in np.argwhere(part > 0)]
        matrices.append(ConfusionMatrix(side, task.accuracy, task.macro_f1, cells))
    off_diagonal = [c.confusion - np.diag(np.diag(c.confusion)) for c in (before, after)]
    # Sort by mistakes after tuning, then by mistakes before.
    order = np.lexsort((-off_diagonal[0].ravel(), -off_diagonal[1].ravel()))[:MAX_MISTAKES]
    mistakes = [
        Mistake(before.classes[i], before.classes[j], int(off_diagonal[0][i, j]), int(off_diagonal[1][i, j]))
        for i, j in (divmod(int(n), len(before.classes)) for n in order)
        if max(off_diagonal[0][i, j], off_diagonal[1][i, j])
    ]
    names = [before.classes[i] for i in shown]
    return ConfusionSection(before.direction, _description(before), before.rows, len(before.classes), names, matrices, mistakes)


def _mistakes_by_class(task: Classified) -> np.ndarray:
    """[C] For each class: its rows predicted as another class, plus rows of other classes predicted as this class."""
    return task.confusion.sum(0) + task.confusion.sum(1) - 2 * np.diag(task.confusion)
