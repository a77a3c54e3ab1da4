"""Class labels of the training rows, counted before the first step, for losses that compare embeddings by class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.contracts import Pair
from mmtune.data.loader.epoch_rows import RowValues
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import RecipeError


@dataclass(frozen=True)
class ClassLabels:
    """Classes of the training rows.

    classes: modality -> int64 [N], the class number of each row's value of the modality, or -1 if it is left out
    count: number of classes
    notes: how many classes there are, and how many values are left out, one line each
    """

    classes: dict[str, np.ndarray]
    count: int
    notes: list[str]


def count_classes(data: WeightedConcat, column: str, pairs: Sequence[Pair], key: str) -> ClassLabels:
    """Number the values of a metadata column from 0, over the rows that have both modalities of a pair.

    Equal contents have the class of the rows that contain them. A content without a class, or with several, is left out. Raises
    RecipeError, which names `key`, if there are fewer than two classes, and DataError if there is no such column.
    """
    labels = RowValues(data, key).labels(column)
    used = {m: np.zeros(len(data), bool) for pair in pairs for m in pair}
    for a, b in pairs:
        both = data.present[a] & data.present[b]
        used[a] |= both
        used[b] |= both
    values = np.unique(labels[np.any(list(used.values()), axis=0)])
    values = values[values != 0]
    if len(values) < 2:
        raise RecipeError(
            f"{key}: column {column!r} of {data.spec} has {len(values)} different values in the rows of this loss; it needs at least 2"
        )
    class_of_row = np.where(labels == 0, -1, np.searchsorted(values, labels))
    notes = [f"{key.removesuffix('.label')}: {len(values):,} classes (column {column!r})"]
    classes = {}
    for m, mask in used.items():
        rows = np.flatnonzero(mask)
        content = np.where(data.labels[m][rows] == 0, -1 - rows, data.labels[m][rows])
        items, item_of_row = np.unique(content, return_inverse=True)
        low, high = np.full(len(items), len(values)), np.full(len(items), -1)
        has = class_of_row[rows] >= 0
        np.minimum.at(low, item_of_row[has], class_of_row[rows[has]])
        np.maximum.at(high, item_of_row[has], class_of_row[rows[has]])
        classes[m] = np.full(len(data), -1)
        classes[m][rows] = np.where(low == high, high, -1)[item_of_row]
        for number, why in ((int((high < 0).sum()), "without a class"), (int((low < high).sum()), "with several classes")):
            if number:
                notes.append(f"{notes[0].partition(':')[0]}: {number:,} of {len(items):,} {m} values are left out: {why}")
    return ClassLabels(classes, len(values), notes)
