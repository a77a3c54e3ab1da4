"""Read the files metadata.csv, metadata.jsonl and metadata.parquet in a folder of media files, as on the Hugging Face hub.

Each row of such a table describes files by their paths, relative to the table: in the column `file_name`, in columns that end in
`_file_name`, or in a column with the usual name of a modality. `file_names` and `..._file_names` have lists of paths. The modality of
a file is that of its extension. All other columns are cells of the row.
"""

import posixpath
from collections.abc import Iterator
from pathlib import Path

from mmtune import modalities
from mmtune.data.sources.tables import Cells, InvalidRow, RowSource, open_table

METADATA_NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")


class FolderMetadata:
    """One metadata table of a folder.

    table: the opened table
    named: the files that its rows name, relative to the top folder
    columns: the columns that do not name files
    """

    def __init__(self, top: Path, file: str):
        """Open the table `file`, a path relative to the folder `top`. Raises DataError if it cannot be read."""
        table = open_table(top / file)
        assert table is not None, file
        self.table: RowSource = table
        self.file, self.folder = file, posixpath.dirname(file)
        self.owner = modalities.by_extension()
        self.file_columns = _file_columns(table.columns)
        self.columns = [c for c in table.columns if c not in self.file_columns]
        self.named: set[str] = set()
        self.modalities: set[str] = set()
        for cells in self.read() if self.file_columns else ():
            for name, value in cells.items() if not isinstance(cells, InvalidRow) else ():
                for path in value if isinstance(value, list) else [value]:
                    if isinstance(path, Path):
                        self.named.add(path.as_posix())
                        self.modalities.add(name)

    def read(self) -> Iterator[Cells | InvalidRow]:
        """Yield the rows: modality -> a `Path` or a list of them, and the cells of all other columns."""
        for cells in self.table.read(set()):
            yield cells if isinstance(cells, InvalidRow) else self._row(cells)

    def _row(self, cells: Cells) -> Cells | InvalidRow:
        files: dict[str, list[Path]] = {}
        for column in self.file_columns:
            value = cells.get(column)
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, str) or not name.strip():
                    continue
                path = posixpath.normpath(posixpath.join(self.folder, name.strip().replace("\\", "/")))
                modality = self.owner.get(posixpath.splitext(path)[1][1:].lower())
                if modality is None:
                    return InvalidRow(f"{self.file}: no modality reads .{posixpath.splitext(path)[1][1:]} files", path)
                files.setdefault(modality, []).append(Path(path))
        if not files:
            return InvalidRow(f"{self.file}: the row names no file ({', '.join(self.file_columns)} empty)")
        return {c: cells.get(c) for c in self.columns if c not in files} | {
            name: paths[0] if len(paths) == 1 else paths for name, paths in files.items()
        }


def _file_columns(columns: list[str]) -> list[str]:
    """The columns that name files: those of the hub, else those with the usual names of modalities whose values are files."""
    of_hub = [c for c in columns if c in ("file_name", "file_names") or c.endswith(("_file_name", "_file_names"))]
    kinds = [modalities.get(n) for n in modalities.names()]
    usual = {n for k in kinds if not k.inline for n in (k.name, *k.columns)}
    return of_hub or [c for c in columns if c.lower() in usual]
