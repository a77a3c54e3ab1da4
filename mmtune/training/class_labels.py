"""Class labels of the training rows for losses that compare embeddings by class: the number of classes, and the class of every item.

The classes are counted before the first step, or listed by the recipe. With random access the class of every row is kept; of streamed
rows the labels of the classes, which are looked up for each batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.contracts import Batch, Pair
from mmtune.data.loader.epoch_rows import RowValues
from mmtune.data.loader.row_classes import KnownClasses, unknown_class
from mmtune.data.shards.class_values import class_label, label_name
from mmtune.errors import DataError, RecipeError
from mmtune.training.unique_items import UniqueItems

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat


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

    def module(self) -> "IndexedClasses":
        """The classes as tensors."""
        return IndexedClasses(self)


@dataclass(frozen=True)
class StreamedClassLabels:
    """Classes of streamed training rows.

    known: the labels of the classes, ascending
    numbers: int64 [C], the class numbers of these labels
    contents: modality -> (contents, numbers), int64 [e] each: contents whose class is not that of each of their rows, ascending, and
        their class number, or -1 if they are left out
    notes: as in `ClassLabels`
    """

    known: KnownClasses
    numbers: np.ndarray
    contents: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of classes."""
        return len(self.numbers)

    def module(self) -> "StreamedClasses":
        """The classes as tensors."""
        return StreamedClasses(self)


AnyClassLabels: TypeAlias = ClassLabels | StreamedClassLabels


class IndexedClasses(nn.Module):
    """`ClassLabels` as tensors, which are moved to the device and not saved."""

    def __init__(self, labels: ClassLabels):
        super().__init__()
        for m, classes in labels.classes.items():
            self.register_buffer(f"classes_{m}", torch.from_numpy(classes), persistent=False)

    def of_rows(self, modality: str, rows: Tensor) -> Tensor:
        """Class numbers of rows' values of `modality`, -1 for values that are left out. rows: int64 [n], row numbers in the dataset"""
        return self.get_buffer(f"classes_{modality}")[rows]

    def of_queries(self, modality: str, items: UniqueItems, batch: Batch) -> Tensor:
        """Class numbers of the query items of `modality` in a batch, int64 [n_queries]; -1 for items that are left out."""
        return self.of_rows(modality, batch.index[items.first_row[: items.n_queries]])


class StreamedClasses(nn.Module):
    """`StreamedClassLabels` as tensors, which are moved to the device and not saved."""

    def __init__(self, labels: StreamedClassLabels):
        super().__init__()
        self.name, self.modalities = label_name(labels.known.column), list(labels.contents)
        tensors = {"labels": labels.known.labels, "numbers": labels.numbers}
        for m, (contents, numbers) in labels.contents.items():
            tensors |= {f"contents_{m}": contents, f"numbers_{m}": numbers}
        for name, array in tensors.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def of_queries(self, modality: str, items: UniqueItems, batch: Batch) -> Tensor:
        """Class numbers of the query items of `modality` in a batch, int64 [n_queries]; -1 for items that are left out.

        An item whose rows in the batch have different classes is left out; rows without a class do not count.
        """
        rows = torch.nonzero(items.item_of_row >= 0).squeeze(1)
        labels, numbers = self.get_buffer("labels"), self.get_buffer("numbers")
        of_row = _look_up(labels, numbers, batch.labels[self.name][rows], numbers.new_tensor(-1))
        if modality in self.modalities:
            contents, of_content = self.get_buffer(f"contents_{modality}"), self.get_buffer(f"numbers_{modality}")
            of_row = _look_up(contents, of_content, batch.labels[modality][rows], of_row)
        item = items.item_of_row[rows][of_row >= 0]
        of_row = of_row[of_row >= 0]
        low = torch.full((len(items),), len(labels), device=of_row.device).scatter_reduce_(0, item, of_row, "amin")
        high = torch.full((len(items),), -1, device=of_row.device).scatter_reduce_(0, item, of_row, "amax")
        return torch.where(low == high, high, -1)[: items.n_queries]


def _look_up(keys: Tensor, values: Tensor, wanted: Tensor, default: Tensor) -> Tensor:
    """Return the values [n] at the `wanted` keys [n], or `default` (one, or [n]) where there is no such key. keys: ascending"""
    if not len(keys):
        return default.expand(len(wanted))
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[at] == wanted, values[at], default)


def class_notes(key: str, column: str, count: int, items: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """How many classes there are, and how many values are left out, one line each.

    key: recipe key of the loss
    items: modality -> (number of distinct values, those without a class, those with several)
    """
    notes = [f"{key}: {count:,} classes (column {column!r})"]
    for m, (total, without, several) in items.items():
        for number, why in ((without, "without a class"), (several, "with several classes")):
            if number:
                notes.append(f"{key}: {number:,} of {total:,} {m} values are left out: {why}")
    return notes


def refuse_few(key: str, column: str, spec: str, count: int) -> None:
    """Raise RecipeError if there are fewer than two classes. key: recipe key of the label"""
    if count < 2:
        raise RecipeError(
            f"{key}: column {column!r} of {spec} has {count} different values in the rows of this loss; it needs at least 2"
        )


def count_classes(
    data: "WeightedConcat",
    column: str,
    pairs: Sequence[Pair],
    key: str,
    listed: Sequence[str] | None = None,
    leave_out: bool = False,
) -> ClassLabels:
    """Number the values of a metadata column from 0, over the rows that have both modalities of a pair.

    Equal contents have the class of the rows that contain them. A content without a class, or with several, is left out. Raises
    RecipeError, which names `key`, if there are fewer than two classes, and DataError if there is no such column.

    listed: the classes in the order of their numbers, instead of those that the rows have
    leave_out: leave out rows of a class that is not listed, instead of raising DataError
    """
    labels = RowValues(data, key).labels(column)
    used = {m: np.zeros(len(data), bool) for pair in pairs for m in pair}
    for a, b in pairs:
        both = data.present[a] & data.present[b]
        used[a] |= both
        used[b] |= both
    in_pair = np.any(list(used.values()), axis=0)
    values = np.unique(labels[in_pair])
    values = values[values != 0]
    numbers, term, unknown = np.arange(len(values)), key.removesuffix(".label"), 0
    if listed is not None:
        in_list = np.array([class_label(name) for name in listed], np.int64)
        strange = np.flatnonzero(in_pair & (labels != 0) & ~np.isin(labels, in_list))
        if len(strange) and not leave_out:
            row = int(strange[0])
            value = data.groups[row] if column == "group" else data.column(column)[row]
            raise DataError(unknown_class(term, column, data.ids[row], value, data.spec, are_listed=True))
        numbers, unknown = np.argsort(in_list, kind="stable"), len(strange)
        values = in_list[numbers]
        labels = np.where(np.isin(labels, values), labels, 0)
    refuse_few(key, column, data.spec, len(values))
    class_of_row = np.where(labels == 0, -1, numbers[np.minimum(np.searchsorted(values, labels), len(values) - 1)])
    classes, counts = {}, {}
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
        counts[m] = len(items), int((high < 0).sum()), int((low < high).sum())
    notes = class_notes(term, column, len(values), counts)
    if unknown:
        notes.append(f"{term}: {unknown:,} rows are left out: their class is not listed")
    return ClassLabels(classes, len(values), notes)
