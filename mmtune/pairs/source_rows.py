"""Rows of a source with the ids, groups and values that `mmtune pack` gives them, and their cells in pairs.parquet."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from mmtune import modalities
from mmtune.data.identity_labels import stable_label
from mmtune.data.pack.columns import ColumnRoles, PackRow, assign_columns
from mmtune.data.sources.row_source import InvalidRow, open_source
from mmtune.pairs.carried_columns import CarriedColumns, reserved_names
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.invalid_rows import count_invalid
from mmtune.pairs.media_cells import MediaCells


def _renamed(roles: ColumnRoles) -> list[str]:
    """The columns of groups and texts whose names pairs.parquet does not have: they are kept beside "group" and "text" as metadata."""
    named = {name: column for name, column in roles.modalities.items() if modalities.get(name).inline}
    named |= {"group": roles.group} if roles.group else {}
    return [c for c in dict.fromkeys(named.values()) if c not in roles.meta and c.lower() not in reserved_names()]


class SourceRows:
    """The rows of a table, a folder, tar files or a Hugging Face dataset on disk.

    source, roles: the opened source and the roles of its columns
    carried: the metadata columns
    types: columns of pairs.parquet -> Arrow type: id, group, a column for each modality, and the metadata
    read: number of source rows that were read by the last call of `rows`
    """

    def __init__(
        self,
        source: str | Path,
        columns: Mapping[str, str] | None = None,
        id: str | None = None,
        group: str | None = None,
        taken: Collection[str] = (),
    ):
        """Open the source. Raises DataError if it cannot be read.

        columns, id, group: as in `mmtune.pack`
        taken: names of further columns of pairs.parquet, which metadata columns of these names do not get
        """
        self.source = open_source(source)
        roles = assign_columns(self.source, dict(columns or {}), id, group, None)
        self.roles = replace(roles, meta=[*roles.meta, *_renamed(roles)])
        self.carried = CarriedColumns(self.source, self.roles.meta, taken)
        names = ["id", "group", *self.roles.modalities]
        self.types: dict[str, pa.DataType] = {**dict.fromkeys(names, pa.string()), **self.carried.types}
        self.read = 0

    def media(self, out: Path, files: Path, drops: DropCounts) -> MediaCells:
        """What makes paths in pairs.parquet of those in the source; see `MediaCells`."""
        return MediaCells(self.source.folder, out, files, drops)

    def rows(self, drops: DropCounts) -> Iterator[PackRow]:
        """Yield the usable rows. Rows that are not, and rows with the id of an earlier one, are counted as dropped."""
        number, seen = 0, set[int]()
        self.read = 0
        roles = replace(self.roles, _path_counts={})  # it counts paths, to tell rows of one file apart
        for source_row, cells in self.source.rows(set(self.roles.modalities.values())):
            self.read += 1
            for row in roles.rows(source_row, cells, number):
                number += 1
                if isinstance(cells, InvalidRow):
                    count_invalid(drops, cells, f"row {source_row}")
                elif row.reason:
                    drops.add(row.reason.partition(":")[0] if row.file else row.reason, f"row {source_row}: {row.reason}")
                elif (label := stable_label(row.id.encode())) in seen:
                    drops.add("the id of an earlier row", f"row {source_row}: {row.id}")
                else:
                    seen.add(label)
                    yield row

    def cells(self, row: PackRow, media: MediaCells) -> dict[str, object] | None:
        """The cells of a row in pairs.parquet, or None if a file that it names does not exist; `media` counts it."""
        found: dict[str, object] = {"id": row.id, "group": row.group}
        for name, value in row.values.items():
            if isinstance(value, bytes) and modalities.get(name).inline:
                found[name] = value.decode("utf-8", "replace")
                continue
            given = {"bytes": value, "path": row.files.get(name)} if isinstance(value, bytes) else self._own_path(value)
            paths = media.paths(given, name, row.id)
            if not paths:
                return None
            found[name] = paths[0]
        return {**found, **self.carried.values(row.meta)}

    def _own_path(self, value: str) -> str:
        """The path of a file relative to the folder of the source, as its cell has it; an absolute path if it lies elsewhere."""
        folder = os.path.join(self.source.folder, "")
        if "://" in value:
            return value
        return value.removeprefix(folder) if value.startswith(folder) else os.path.join(os.getcwd(), value)
