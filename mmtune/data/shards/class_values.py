"""The class of a streamed row: the value of the column that a loss on class labels names, and its label.

The label of a class is that of `epoch_rows.RowValues.labels`: equal values have equal labels, in every dataset.
"""

import json
from collections.abc import Mapping

from mmtune.data.identity_labels import stable_label

GROUP = "group"
"""The column whose labels every row has already."""


def label_name(column: str) -> str:
    """The key of `Batch.labels` and `StreamedRow.labels` with the label of a row's class."""
    return GROUP if column == GROUP else f"class {column}"


def class_label(value: str) -> int:
    """The label of a class, as in `RowValues.labels`."""
    return stable_label(value.encode())


class ClassColumn:
    """Reads the class of a row from its metadata, id or group.

    name: a metadata column, "id", "group", or the name of the id or group column in the packed source
    aliases: as in `ShardListing`, of the set that the row is in
    """

    def __init__(self, name: str, aliases: Mapping[str, str]):
        self.name, self._needle = name, json.dumps(name, ensure_ascii=False)
        self.role = name if name in ("id", GROUP) else aliases.get(name)
        """ "id" or "group" if rows without such metadata have their id or group as their class, else None."""

    def value(self, meta: str, id: str, group: str | None) -> str | None:
        """The class of a row as a string; None if it has none. meta: the metadata, as JSON text; "" if there are none"""
        value = json.loads(meta).get(self.name) if self.name != GROUP and self._needle in meta else None
        if value is None and self.role is not None:
            value = id if self.role == "id" else group
        return None if value in (None, "") else str(value)
