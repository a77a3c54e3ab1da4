"""Levels of labels, from coarse to fine: columns of a table, a column with taxonomy paths, or the folders of the files."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmtune.data.identity_labels import identity_string
from mmtune.data.pack.columns import PackRow, named_column, nested_cell
from mmtune.data.sources.row_source import RowSource
from mmtune.errors import DataError

FOLDERS = "folders"
"""Value of `taxonomy` for the folders of the files in place of a column."""
PATH_SEPARATOR = re.compile(r"\s*(?:>|/|\u203a|\u00bb|\|)\s*")

LabelPath = tuple[str | None, ...]
"""The labels of a row from coarse to fine; None where a label is missing, which then equals no other."""


@dataclass(frozen=True)
class LabelLevels:
    """Reads the labels of rows.

    columns: columns of the levels, from coarse to fine
    taxonomy: column whose cells are paths such as "Shoes > Boots", FOLDERS, or None; its levels come before `columns`
    """

    columns: tuple[str, ...]
    taxonomy: str | None

    @classmethod
    def of(cls, source: RowSource, levels: Sequence[str], taxonomy: str | None) -> "LabelLevels":
        """Find the columns. Raises DataError, which names the nearest column, if one does not exist, or if there is no level."""
        if not levels and taxonomy is None:
            raise DataError(
                f"{source.path}: no labels; give --level COLUMN for each level, the coarsest first, or --taxonomy COLUMN "
                f"(or --taxonomy {FOLDERS}); columns: {', '.join(source.columns)}"
            )
        if taxonomy is not None and taxonomy != FOLDERS:
            taxonomy = named_column(source, taxonomy, "taxonomy")
        return cls(tuple(named_column(source, c, "level") for c in levels), taxonomy)

    def path(self, row: PackRow) -> LabelPath:
        """The labels of a row; () if it has none."""
        labels: list[str | None] = []
        if self.taxonomy == FOLDERS:
            labels += posixpath.dirname((row.file or "").replace("\\", "/")).split("/") if row.file else []
        elif self.taxonomy is not None:
            cell = identity_string(self._cell(row, self.taxonomy))
            labels += PATH_SEPARATOR.split(cell) if cell else []
        labels = [label or None for label in labels]
        labels += [identity_string(self._cell(row, c)) for c in self.columns]
        return tuple(labels) if any(labels) and labels[-1] is not None else ()

    def _cell(self, row: PackRow, column: str) -> object:
        if column in row.meta or column.partition(".")[0] in row.meta:
            return nested_cell(row.meta, column)
        return row.group if column == "group" else None


def group_names(paths: Iterable[LabelPath]) -> dict[LabelPath, str]:
    """The name of each distinct path: its finest label, or the whole path where several paths end in that label."""
    by_leaf: dict[str, set[LabelPath]] = defaultdict(set)
    for path in paths:
        by_leaf[path[-1] or ""].add(path)
    return {
        path: leaf if len(of_leaf) == 1 else " > ".join(label or "?" for label in path)
        for leaf, of_leaf in by_leaf.items()
        for path in of_leaf
    }
