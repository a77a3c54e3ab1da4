"""Class labels of streamed rows for losses on class labels, and the check that their classes are known."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.contracts import Pair
from mmtune.data.shards.class_values import GROUP, ClassColumn, class_label, label_name
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.tar_stream import StreamedRow
from mmtune.errors import DataError


@dataclass(frozen=True)
class KnownClasses:
    """The classes of one loss.

    key: recipe key of the loss, for messages
    column: as in `ClassColumn`
    pairs: the pairs of the loss; rows without both sides of one of them may have any class
    labels: int64 [C], labels of the classes, ascending
    are_listed: whether the recipe lists them, else they were counted
    """

    key: str
    column: str
    pairs: tuple[Pair, ...]
    labels: np.ndarray
    are_listed: bool


class RowClasses:
    """Adds the labels of the classes to streamed rows.

    known: the classes of each loss
    sets: the training sets
    leave_out: count rows of an unknown class, which the loss leaves out, instead of raising an error
    """

    def __init__(self, known: Sequence[KnownClasses], sets: StreamedSets, leave_out: bool = False):
        self.known, self.sets, self.leave_out = list(known), sets, leave_out
        self.columns = list(dict.fromkeys(k.column for k in known))
        self.names = [label_name(c) for c in self.columns if c != GROUP]
        """Names of the labels that are added."""
        self._readers: dict[str, dict[str, ClassColumn]] = {}

    def add(self, row: StreamedRow, shard: ShardFile, notes: Counter[str]) -> None:
        """Add the labels to a row of a shard. Raises DataError, which names row and class, for an unknown class, or counts it in `notes`."""
        readers = self._readers.get(shard.url)
        if readers is None:
            readers = self._readers[shard.url] = {c: ClassColumn(c, self.sets.aliases_of(shard)) for c in self.columns}
        values = {c: reader.value(row.meta, row.id, row.group) for c, reader in readers.items()}
        for column, value in values.items():
            if column != GROUP:
                row.labels[label_name(column)] = 0 if value is None else class_label(value)
        for known in self.known:
            label = row.labels[label_name(known.column)]
            if not label or not any(a in row.values and b in row.values for a, b in known.pairs):
                continue
            at = int(np.searchsorted(known.labels, label))
            if at < len(known.labels) and known.labels[at] == label:
                continue
            if not self.leave_out:
                raise DataError(
                    unknown_class(known.key, known.column, row.id, values[known.column], shard.url, known.are_listed)
                )
            notes[
                f"rows left out of {known.key}: their class is not {'listed' if known.are_listed else 'among those counted'}"
            ] += 1


def unknown_class(key: str, column: str, row: str, value: object, where: str, are_listed: bool) -> str:
    """The error message for a row whose class is not known."""
    fix = (
        f"which {key}.classes does not list; add it, or set data.skip_bad=true to leave such rows out of this loss"
        if are_listed
        else "which no row had when the classes were counted: the data have changed; train again in another run.dir"
    )
    return f"{key}: row {row!r} of {where} has the class {value!r} (column {column!r}), {fix}"
