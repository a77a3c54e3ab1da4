"""Which things are taken for which: confusion matrices before and after, cut to the classes with the most mistakes."""

from dataclasses import dataclass

import numpy as np

from mmtune.evaluation.tasks.classify import NEIGHBOURS, Classified, tasks
from mmtune.reporting.measured import SIDES, Measured

CLASSES, PAIRS = 24, 10


@dataclass
class Cell:
    x: int
    y: int
    count: int
    share: float


@dataclass
class Matrix:
    side: str
    accuracy: float
    macro_f1: float
    cells: list[Cell]


@dataclass
class Swap:
    """Rows of one class taken for another."""

    true: str
    found: str
    before: int
    after: int


@dataclass
class Confusion:
    """One classification task. told: how a row gets its class; names: the classes shown; classes: how many there are."""

    direction: str
    told: str
    rows: int
    classes: int
    names: list[str]
    matrices: list[Matrix]
    swaps: list[Swap]


def confusions(found: Measured) -> list[Confusion]:
    """One for each task that the data hold (see `evaluate.classify.tasks`)."""
    before, after = (tasks(found.vectors[side], found.classes.get(side)) for side in SIDES)
    return [_confusion(dict(zip(SIDES, pair, strict=True))) for pair in zip(before, after, strict=True)]


def _told(c: Classified) -> str:
    if c.how == "words":
        return f"{c.direction} as classification: each of {c.rows:,} rows gets the group whose description lies nearest"
    name = c.direction.split("->")[0]
    return f"{name} as classification: each of {c.rows:,} items gets the group of its {NEIGHBOURS} nearest others"


def _confusion(both: dict[str, Classified]) -> Confusion:
    old, new = both["before"], both["after"]
    wrong = sum((_mistakes(c) for c in both.values()), np.zeros(len(old.classes), np.int64))
    shown = np.sort(np.argsort(-wrong, kind="stable")[:CLASSES])
    matrices = []
    for side, c in both.items():
        part, total = c.confusion[np.ix_(shown, shown)], c.confusion[shown].sum(1)
        cells = [Cell(int(x), int(y), int(part[y, x]), float(part[y, x] / total[y])) for y, x in np.argwhere(part > 0)]
        matrices.append(Matrix(side, c.accuracy, c.macro_f1, cells))
    off = [x.confusion - np.diag(np.diag(x.confusion)) for x in (old, new)]
    order = np.lexsort((-off[0].ravel(), -off[1].ravel()))[:PAIRS]  # what is still mixed up; then what no longer is
    swaps = [
        Swap(old.classes[i], old.classes[j], int(off[0][i, j]), int(off[1][i, j]))
        for i, j in (divmod(int(n), len(old.classes)) for n in order)
        if max(off[0][i, j], off[1][i, j])
    ]
    return Confusion(old.direction, _told(old), old.rows, len(old.classes), [old.classes[i] for i in shown], matrices, swaps)


def _mistakes(c: Classified) -> np.ndarray:
    """[C] rows that a class loses and wins wrongly."""
    return c.confusion.sum(0) + c.confusion.sum(1) - 2 * np.diag(c.confusion)
