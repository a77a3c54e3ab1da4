"""Media of products that lie in a table of their own, a row for each picture or recording, and are joined to a catalog by id."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmtune.data.identity_labels import identity_string
from mmtune.data.pack.columns import named_column, nested_cell
from mmtune.data.sources.row_source import InvalidRow, RowSource
from mmtune.errors import DataError
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.invalid_rows import count_invalid
from mmtune.pairs.media_cells import MediaCells


class JoinedMedia:
    """The files of joined tables, by the id of their product.

    tables: the opened tables
    rows: number of their rows; counted by `read`
    """

    def __init__(self, tables: Sequence[RowSource], id: str, media: Mapping[str, Sequence[str]]):
        """Find the columns. Raises DataError if a table has no column `id`, or none of the columns with files.

        media: modality -> columns; a table needs only one of them
        """
        self.tables, self.rows = tables, 0
        self._ids = [named_column(t, id, "id") for t in tables]
        self._media = [{m: [c for c in columns if c in t.columns] for m, columns in media.items()} for t in tables]
        self._files: dict[str, dict[str, list[str]]] = {}
        for table, columns in zip(tables, self._media, strict=True):
            if not any(columns.values()):
                names = ", ".join(c for cs in media.values() for c in cs)
                raise DataError(f"{table.path}: no column {names}, which has the files; columns: {', '.join(table.columns)}")

    def read(self, out: Path, files: Path, drops: DropCounts, separator: str | None) -> None:
        """Read all tables; see `MediaCells` for the parameters."""
        for table, id_column, columns in zip(self.tables, self._ids, self._media, strict=True):
            cells_to_media = MediaCells(table.folder, out, files, drops, separator)
            for number, cells in table.rows({c for cs in columns.values() for c in cs}):
                self.rows += 1
                where = f"{table.path.name} row {number}"
                if isinstance(cells, InvalidRow):
                    count_invalid(drops, cells, where)
                    continue
                id = identity_string(nested_cell(cells, id_column))
                if id is None:
                    drops.add(f"no id: {id_column} is empty", where)
                    continue
                for m, names in columns.items():
                    for name in names:
                        found = cells_to_media.paths(cells.get(name), m, where)
                        self._files.setdefault(id, {}).setdefault(m, []).extend(found)

    def take(self, id: str) -> Mapping[str, Sequence[str]]:
        """Modality -> files of a product, which then counts as used."""
        return self._files.pop(id, {})

    def unused(self) -> Iterator[tuple[str, int]]:
        """(id, number of files) of the products that were never taken."""
        for id, files in self._files.items():
            yield id, sum(map(len, files.values()))
