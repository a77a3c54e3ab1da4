"""Confusion matrices before and after tuning, cut to the classes with the most mistakes."""

from dataclasses import dataclass

import numpy as np

from mmtune.evaluation.tasks.classified import Classified
from mmtune.evaluation.tasks.classify import classifications
from mmtune.reporting.measured import SIDES, Measured

MAX_CLASSES, MAX_MISTAKES = 24, 10


@dataclass
class MatrixCell:
    """A cell of a matrix that is not empty: predicted class x, true class y, rows, and their share of the true class."""

    x: int
    y: int
    count: int
    share: float


@dataclass
class ConfusionMatrix:
    """One side's matrix over the shown classes; accuracy and macro-F1 are of all classes."""

    side: str
    accuracy: float
    macro_f1: float
    cells: list[MatrixCell]


@dataclass
class Mistake:
    """Rows of class `true` that were predicted as class `predicted`, before and after."""

    true: str
    predicted: str
    before: int
    after: int


@dataclass
class ConfusionSection:
    """One classification task. description: how a row gets its class; names: the shown classes; classes: how many there are."""

    direction: str
    description: str
    rows: int
    classes: int
    names: list[str]
    matrices: list[ConfusionMatrix]
    mistakes: list[Mistake]


def confusion_sections(measured: Measured) -> list[ConfusionSection]:
    """One for each classification task that the data allow (see `mmtune.evaluation.tasks.classify.classifications`)."""
    before, after = (classifications(measured.vectors[side], measured.classes.get(side)) for side in SIDES)
    return [_section(dict(zip(SIDES, pair, strict=True))) for pair in zip(before, after, strict=True)]


def _description(task: Classified) -> str:
    if task.how == "descriptions":
        return f"{task.direction} as classification: each of {task.rows:,} rows gets the group with the nearest description"
    name = task.direction.split("->")[0]
    return f"{name} as classification: each of {task.rows:,} items gets the group of its {task.neighbours} nearest neighbours"


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
    # the mistakes that remain come first, then those that are gone
    order = np.lexsort((-off_diagonal[0].ravel(), -off_diagonal[1].ravel()))[:MAX_MISTAKES]
    mistakes = [
        Mistake(before.classes[i], before.classes[j], int(off_diagonal[0][i, j]), int(off_diagonal[1][i, j]))
        for i, j in (divmod(int(n), len(before.classes)) for n in order)
        if max(off_diagonal[0][i, j], off_diagonal[1][i, j])
    ]
    names = [before.classes[i] for i in shown]
    return ConfusionSection(before.direction, _description(before), before.rows, len(before.classes), names, matrices, mistakes)


def _mistakes_by_class(task: Classified) -> np.ndarray:
    """[C] rows of each class that were predicted as another, and rows of others that were predicted as it."""
    return task.confusion.sum(0) + task.confusion.sum(1) - 2 * np.diag(task.confusion)
