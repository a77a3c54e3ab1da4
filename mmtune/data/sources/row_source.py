"""Open a source of `mmtune pack`.

A source is a CSV, TSV, JSONL, Parquet or tar file, a folder of Parquet or tar files, a Hugging Face dataset on disk, or a folder of
media files. `tables` describes what its rows and cells are.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from mmtune.data.sources.dataset_folder import data_files, holds_only, saved_files, splits_of
from mmtune.data.sources.media_folder import MediaFolder
from mmtune.data.sources.tables import (
    ARROW_SUFFIXES,
    TEXT_SUFFIXES,
    Cells,
    InvalidRow,
    RowSource,
    open_arrow,
    open_table,
)
from mmtune.data.sources.tar_rows import TarRows, holds_tars
from mmtune.errors import DataError
from mmtune.runtime.files import URL

ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".gz", ".7z", ".rar")
__all__ = ["Cells", "InvalidRow", "RowSource", "is_dataset_folder", "open_source"]


def open_source(path: str | Path) -> RowSource:
    """Open a source. The kind is recognised by the file extension, or by the files in a folder.

    Raises DataError if the source is missing, empty, unreadable or of an unknown kind.
    """
    if URL.match(str(path)) and not Path(path).exists():
        raise DataError(f"{path}: SOURCE must be a local file or folder (its cells may be URLs); download it first")
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder")
    if (table := open_table(path)) is not None:
        return table
    if path.suffix.lower() == ".tar":
        return _open_tars(path)
    if path.name.lower().endswith(ARCHIVES):
        raise DataError(f"{path}: a compressed archive; decompress it first, then pack the .tar or the folder")
    raise DataError(f"{path}: not a kind of source; use .csv, .tsv, .jsonl, .parquet, .tar or a folder")


def is_dataset_folder(path: Path) -> bool:
    """Whether a folder is a Hugging Face dataset on disk: one that was saved with `save_to_disk`, or Parquet files alone."""
    return saved_files(path) is not None or holds_only(path, ARROW_SUFFIXES)


def _are_all(files: list[Path], suffixes: tuple[str, ...]) -> bool:
    return bool(files) and all(f.suffix.lower() in suffixes for f in files)


def _open_directory(path: Path) -> RowSource:
    if (saved := saved_files(path)) is not None:
        return open_arrow(path, saved, path, splits_of(saved, path))
    files = data_files(path)
    if _are_all(files, ARROW_SUFFIXES):
        return open_arrow(path, files, path, splits_of(files, path))
    if _are_all(files, TEXT_SUFFIXES):
        return _open_text_tables(path, files)
    if holds_tars(path):
        return _open_tars(path)
    folder = MediaFolder(path)
    return RowSource(
        path,
        "folder",
        path,
        folder.columns,
        folder.total,
        folder.sha256,
        lambda _: folder.read(),
        folder.untyped,
        folder.splits,
    )


def _open_text_tables(path: Path, files: list[Path]) -> RowSource:
    """Open a folder of CSV, TSV or JSONL tables as one table. Paths in cells are relative to the folder of the tables."""
    tables = [t for f in files if (t := open_table(f)) is not None]
    splits = splits_of(files, path)
    columns = list(dict.fromkeys(c for t in tables for c in t.columns))
    adds_split = bool(splits) and "split" not in columns
    typed = {c for t in tables for c in t.columns if c not in t.untyped}
    folders = {f.parent for f in files}

    def read(wanted: set[str]) -> Iterator[Cells | InvalidRow]:
        for table in tables:
            own = {"split": splits[table.path]} if adds_split and table.path in splits else {}
            for cells in table.read(wanted):
                yield InvalidRow(cells.reason, table.path.name) if isinstance(cells, InvalidRow) else {**own, **cells}

    return RowSource(
        path,
        tables[0].kind,
        folders.pop() if len(folders) == 1 else path,
        [*columns, *(["split"] if adds_split else [])],
        sum(t.total for t in tables),
        hashlib.sha256("".join(t.sha256 for t in tables).encode()).hexdigest(),
        read,
        frozenset(columns) - typed,
        adds_split,
    )


def _open_tars(path: Path) -> RowSource:
    tars = TarRows(path)
    folder = path if path.is_dir() else path.parent
    return RowSource(path, "tar", folder, tars.columns, tars.total, tars.sha256, tars.read)
