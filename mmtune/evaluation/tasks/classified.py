"""The result of a classification: its confusion matrix, accuracy and macro-F1."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmtune.contracts import JsonObject

SHOWN = 8  # with at most this many classes the matrix is printed; with more, only this many of the most frequent confusions


@dataclass
class Classified:
    """The result of a classification.

    confusion: int64 [C, C], number of rows by true class (first axis) and predicted class (second axis)
    skipped: number of rows without a class, or with nothing to classify them by
    how: "descriptions" (by names or descriptions of the classes) or "neighbours" (by the nearest other items)
    neighbours: number of neighbours
    row_ids: [N], ids of the classified rows or items
    truth, predicted: int64 [N], their class numbers
    """

    direction: str
    classes: list[str]
    confusion: np.ndarray
    skipped: int
    how: str = "descriptions"
    neighbours: int = 0
    row_ids: list[str] = field(default_factory=list, repr=False)
    truth: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    predicted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    @property
    def rows(self) -> int:
        """Number of rows that were classified."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows whose predicted class is the true one."""
        return float(np.trace(self.confusion) / max(self.rows, 1))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes of the rows. F1 = 2 correct / (true + predicted).

        A class that no row has, but one row is predicted as, is no class of the mean: the wrong prediction lowers the F1 of the row's own.
        """
        truth = self.confusion.sum(1)
        occurs, both = truth > 0, truth + self.confusion.sum(0)
        return float((2 * np.diag(self.confusion)[occurs] / both[occurs]).mean()) if occurs.any() else 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """accuracy and macro_f1."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}

    def weighted_metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Return the metrics if row i occurred weights[i] times [N]."""
        size = len(self.classes)
        counts = np.bincount(self.truth * size + self.predicted, weights, size * size).astype(np.int64).reshape(size, size)
        return replace(self, confusion=counts).metrics

    @property
    def summary(self) -> str:
        """The result in one line."""
        how = "the nearest description" if self.how == "descriptions" else f"the {self.neighbours} nearest neighbours"
        scores = f"accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}"
        return f"{self.direction} as classification by {how}: {scores} ({self.rows:,} rows, {len(self.classes)} classes)"

    def to_dict(self) -> JsonObject:
        return {
            "direction": self.direction,
            "how": self.how,
            "rows": self.rows,
            "skipped": self.skipped,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
        }

    def __str__(self) -> str:
        """Return the summary and the confusion matrix, or for many classes the most frequent confusions."""
        from mmtune.evaluation.result_tables import plain_table

        lines = [self.summary]
        if self.skipped:
            lines.append(f"{self.skipped:,} rows left out: no class, or nothing to classify them by")
        if len(self.classes) <= SHOWN:
            rows = [[c, *(f"{n:,}" for n in line)] for c, line in zip(self.classes, self.confusion.tolist(), strict=True)]
            return "\n".join([*lines, plain_table(["true class, by predicted class", *self.classes], rows)])
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        for at in np.argsort(-wrong, axis=None, kind="stable")[:SHOWN]:
            i, j = divmod(int(at), len(self.classes))
            if wrong[i, j]:
                lines.append(
                    f"  {self.classes[i]} predicted as {self.classes[j]}: {wrong[i, j]:,} of {self.confusion[i].sum():,}"
                )
        return "\n".join(lines)


def confusion_counts(truth: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix [C, C] of true and predicted class numbers [N]."""
    if not len(truth):
        return np.zeros((classes, classes), np.int64)
    from sklearn.metrics import confusion_matrix

    return np.asarray(confusion_matrix(truth, predicted, labels=np.arange(classes)), np.int64)
