"""The rows of one epoch with what a batch plan may know about them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmtune.data.identity_labels import stable_label
from mmtune.data.shards.dataset import MetaValue
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError


class RowValues:
    """Metadata columns of all rows as arrays. Every column is read once.

    key: the recipe key that names the columns, for messages
    """

    def __init__(self, data: WeightedConcat, key: str) -> None:
        self.data, self.key = data, key
        self._labels: dict[str, np.ndarray] = {"group": data.labels["group"]}
        self._numbers: dict[str, np.ndarray] = {}

    def labels(self, column: str) -> np.ndarray:
        """Labels of a metadata column, int64 [N]: equal non-zero labels mean the same value; 0 means no value.

        Raises DataError if there is no such column.
        """
        if column not in self._labels:
            values = self._column(column)
            label = {v: stable_label(v.encode()) for v in {str(v) for v in values if v not in (None, "")}}
            self._labels[column] = np.array([label.get(str(v), 0) for v in values], np.int64)
        return self._labels[column]

    def numbers(self, column: str) -> np.ndarray:
        """Values of a numeric metadata column, float64 [N]; 0 for a row without a value. Raises DataError for other values."""
        if column not in self._numbers:
            values = self._column(column)
            for i, v in enumerate(values):
                if isinstance(v, bool) or not (v in (None, "") or isinstance(v, int | float)):
                    raise DataError(f"{self.key}: column {column!r} of row {self.data.ids[i]!r} is {v!r}, not a number")
            self._numbers[column] = np.array([v or 0.0 for v in values], np.float64)
        return self._numbers[column]

    @cached_property
    def training_set(self) -> np.ndarray:
        """Number of the training set of every row, int64 [N]."""
        return np.repeat(np.arange(len(self.data.sets)), np.diff(self.data.starts))

    def _column(self, name: str) -> list[MetaValue]:
        try:
            return self.data.column(name)
        except DataError as e:
            raise DataError(f"{self.key}: {e}") from None


@dataclass(frozen=True)
class EpochRows:
    """The rows that one epoch uses.

    rows: int64 [n], row numbers in random order; a row of a training set with weight 2 occurs twice
    batch_size: wanted number of rows per batch
    rng: random generator of this epoch, seeded by the run's seed and the epoch; a plan must not use another one
    data: the training data
    values: metadata columns of all rows
    """

    rows: np.ndarray
    batch_size: int
    rng: np.random.Generator
    data: WeightedConcat
    values: RowValues

    def labels(self, column: str) -> np.ndarray:
        """Labels of a metadata column for all rows of the data (see `RowValues.labels`)."""
        return self.values.labels(column)

    def numbers(self, column: str) -> np.ndarray:
        """Values of a numeric metadata column for all rows of the data (see `RowValues.numbers`)."""
        return self.values.numbers(column)

    @property
    def training_set(self) -> np.ndarray:
        """Number of the training set of every row of the data, int64 [N]."""
        return self.values.training_set
