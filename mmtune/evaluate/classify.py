"""Classification by retrieval: which class's words lie nearest to a value (zero-shot, CLIP, arXiv 2103.00020, section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtune.contracts import Embedded
from mmtune.errors import DataError
from mmtune.similarity import exact_keys, tie_order, unit


@dataclass
class Classified:
    """confusion [C, C]: rows of the true class (first axis) by the class found; classes without a row stay out of macro-F1.

    skipped: rows without a class, or of a class that nothing describes.
    """

    direction: str
    classes: list[str]
    confusion: np.ndarray
    skipped: int

    @property
    def rows(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / max(self.rows, 1))

    @property
    def macro_f1(self) -> float:
        """Mean F1 = 2 right / (true + found) over the classes that are true or found anywhere."""
        right, both = np.diag(self.confusion), self.confusion.sum(0) + self.confusion.sum(1)
        return float((2 * right[both > 0] / both[both > 0]).mean()) if both.any() else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction,
            "rows": self.rows,
            "skipped": self.skipped,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
        }


def is_task(labels: Embedded, name: str) -> bool:
    """Whether the values of modality `name` name classes: in two groups at least, and shared by two rows each on average.

    Where every row has words of its own, a class's words would hold the row's own: that is retrieval, not classification.
    """
    known = np.array([g is not None for g in labels.groups], bool)
    content = labels.labels.get(name)
    if content is None or len({g for g in labels.groups if g is not None}) < 2:
        return False
    return 2 * len(np.unique(content[known])) <= int(known.sum())


def classify(vectors: Mapping[str, Embedded], pair: tuple[str, str]) -> Classified:
    """Give each row's `pair[0]` the group whose description is nearest: the mean of the group's distinct values of `pair[1]`,
    each of unit length, normalised again. Ties go to the class whose name is last, as everywhere.

    Raises DataError when fewer than two groups have a description.
    """
    a, b = (vectors[m] for m in pair)
    classes = sorted({g for g in b.groups if g is not None})
    classes = [classes[i] for i in tie_order(classes)]  # descending, so that argmax breaks ties by the total order
    if len(classes) < 2:
        raise DataError(f"{'->'.join(pair)}: {len(classes)} groups have a {pair[1]}; classification needs two")
    number = {g: i for i, g in enumerate(classes)}
    z, content = unit(b.vectors, pair[1]), b.labels.get(pair[1])
    sums = np.zeros((len(classes), z.shape[1]), np.float64)
    seen: set[tuple[str, int]] = set()
    for i, group in enumerate(b.groups):
        key = (group or "", int(content[i]) if content is not None else -1 - i)
        if group is not None and key not in seen:
            seen.add(key)
            sums[number[group]] += z[i]
    at = np.array([i for i, g in enumerate(a.groups) if g in number], np.int64)
    truth = np.array([number[a.groups[i]] for i in at], np.int64)
    found = exact_keys(unit(a.vectors[at], pair[0]), unit(sums.astype(np.float32), pair[1])).argmax(1)
    up = len(classes) - 1 - np.arange(len(classes))
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (up[truth], up[found]), 1)
    return Classified("->".join(pair), classes[::-1], confusion, len(a.groups) - len(at))
