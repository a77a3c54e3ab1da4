"""Read a folder of media files as rows, in one of three layouts.

Metadata layout: a table metadata.csv, .tsv, .jsonl or .parquet names files and has their captions and other columns (see
`folder_metadata`). Files that no table names are rows without metadata.

Sidecar layout: at least half of the media files have a text file of the same name (0.txt or 0.jpg.txt for 0.jpg), which is their
caption. The others have none.

Class layout (otherwise): the name of a file's folder is its class. The row's group is the folder name, and its caption is the folder
name with `_` and `-` replaced by spaces, unless the file has a text file of its own. Files at the top level have no group and no
caption.

In all layouts, files of different modalities with the same name up to the extension are one row (0.png and 0.wav). If all folders at
the top are called like splits (train, test, ...), they are no classes but the column "split". The id of a row is a path relative to
the top folder. Hidden files and folders are ignored. All other files become rows; a file that belongs to no modality becomes a
rejected row.
"""

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mmtune import modalities
from mmtune.data.identity_labels import decode_name
from mmtune.data.sources.dataset_folder import SPLITS
from mmtune.data.sources.folder_metadata import METADATA_NAMES, FolderMetadata
from mmtune.data.sources.tables import ARROW_SUFFIXES, TEXT_SUFFIXES, Cells, InvalidRow
from mmtune.errors import DataError, DataWarning

IGNORED = {"Thumbs.db", "desktop.ini", "__MACOSX"}


class MediaFolder:
    """The rows of a folder.

    files: paths relative to the folder, in sorted order
    columns: names of the columns of the rows
    untyped: those columns whose cells are strings that may be numbers
    total: number of rows
    sha256: hash of the names and sizes of the files, and of the metadata tables
    splits: whether the rows have a column "split", from the folders at the top
    """

    def __init__(self, path: Path):
        """Find the files. Issues a DataWarning if they do not all follow one layout. Raises DataError if there are none."""
        self.path = path
        self.files, digest = _walk(path)
        if not self.files:
            raise DataError(f"{path}: the folder is empty")
        tables = [FolderMetadata(path, f) for f in self.files if os.path.basename(f).lower() in METADATA_NAMES]
        self.tables = [t for t in tables if t.named]
        self.sha256 = hashlib.sha256("".join([digest, *(t.table.sha256 for t in self.tables)]).encode()).hexdigest()
        tops = {f.partition("/")[0] for f in self.files if "/" in f}
        self.splits = len(tops) > 1 and all(SPLITS.fullmatch(t) for t in tops)
        described = {t.file for t in self.tables}.union(*(t.named for t in self.tables))
        self._rows = self._rows_of([f for f in self.files if f not in described])
        self.total = len(self._rows) + sum(t.table.total for t in self.tables)
        names = [n for n in modalities.names() if n not in self._metadata_columns()]
        if self.tables:
            present = {n for r in self._rows if not isinstance(r, InvalidRow) for n in r}
            names = [n for n in names if n in present or any(n in t.modalities for t in self.tables)]
        reserved = ["id", "group", *(["split"] if self.splits else [])]
        self.columns = list(dict.fromkeys([*names, *reserved, *self._metadata_columns()]))
        typed = {c for t in self.tables for c in t.columns if c not in t.table.untyped}
        self.untyped = frozenset(self._metadata_columns()) - typed
        if self.tables and self._rows:
            warnings.warn(
                f"{path}: {len(self._rows)} files are not named in {', '.join(t.file for t in self.tables)}; they are rows without "
                f"metadata (first: {self._first_file(self._rows[0])})",
                DataWarning,
                stacklevel=4,
            )

    def _metadata_columns(self) -> list[str]:
        return list(dict.fromkeys(c for t in self.tables for c in t.columns))

    def _first_file(self, row: Cells | InvalidRow) -> str:
        return str(row.file if isinstance(row, InvalidRow) else next(v for v in row.values() if isinstance(v, Path)))

    def read(self) -> Iterator[Cells | InvalidRow]:
        """Yield the rows: those of the metadata tables, then the files that no table names."""
        for table in self.tables:
            for row in table.read():
                yield row if isinstance(row, InvalidRow) else self._with_split(row)
        yield from map(lambda r: r if isinstance(r, InvalidRow) else self._with_split(r), self._rows)

    def _with_split(self, row: Cells) -> Cells:
        if not self.splits or "split" in row:
            return row
        paths = [p for v in row.values() for p in (v if isinstance(v, list) else [v]) if isinstance(p, Path)]
        return {**row, "split": paths[0].parts[0]} if paths and len(paths[0].parts) > 1 else row

    def _rows_of(self, files: list[str]) -> list[Cells | InvalidRow]:
        """The rows of files without a metadata table."""
        owner = modalities.by_extension()
        language = {n for n in modalities.names() if modalities.get(n).language}
        samples = _samples(files, owner)
        kinds = [{owner[_suffix(f)] for f in sample if _suffix(f) in owner} for sample in samples]
        media = [k for k in kinds if k - language]
        captioned = sum(1 for k in media if k & language)
        by_class = not self.tables and bool(language) and 2 * captioned < len(media)
        if 0 < captioned < len(media) and not self.tables:
            others = "the name of their folder" if by_class else "none"
            warnings.warn(
                f"{self.path}: {captioned} of {len(media)} media files have a caption file beside them, which they get as caption; "
                f"the others get {others}",
                DataWarning,
                stacklevel=5,
            )
        class_modality = next(n for n in modalities.names() if n in language) if by_class else None
        return [self._row(sample, owner, class_modality) for sample in samples]

    def _row(self, files: list[str], owner: dict[str, str], class_modality: str | None) -> Cells | InvalidRow:
        """Make a row from `files`.

        owner: file extension -> modality
        class_modality: text modality that gets the name of the folder as its value; None in the other layouts
        """
        suffix = _suffix(files[0])
        if suffix not in owner:
            is_table = f".{suffix}" in (*TEXT_SUFFIXES, *ARROW_SUFFIXES)
            fix = "; pack the table itself, or call it metadata.csv and name files in a column file_name" if is_table else ""
            return InvalidRow(f"no modality reads .{suffix} files{fix}", decode_name(files[0]))
        cells: dict[str, object] = {owner[_suffix(f)]: Path(f) for f in files}
        folders = files[0].split("/")[:-1]
        if class_modality and folders and not (self.splits and len(folders) == 1):
            name = decode_name(folders[-1])
            cells = {class_modality: name.replace("_", " ").replace("-", " ").strip(), "group": name} | cells
        return cells | {"id": decode_name(files[0])}


def is_hidden_or_system(name: str) -> bool:
    """Whether a file or folder of this name is ignored: hidden ones, and those that operating systems write into folders."""
    return name.startswith(".") or name in IGNORED


def _walk(path: Path) -> tuple[list[str], str]:
    """All files below a folder that are not ignored, and a hash of their names and sizes."""
    found, sha256 = [], hashlib.sha256()
    ancestors: dict[str, set[tuple[int, int]]] = {}  # folder -> ids of the folders that contain it
    for folder, folders, names in os.walk(path, followlinks=True):
        inside = ancestors.pop(folder, set()) | {_directory_id(folder)}
        folders[:] = [d for d in sorted(folders) if not is_hidden_or_system(d)]
        # skip symbolic links to a containing folder, which would make the walk endless
        folders[:] = [d for d in folders if _directory_id(os.path.join(folder, d)) not in inside]
        ancestors |= {os.path.join(folder, d): inside for d in folders}
        for name in sorted(n for n in names if not is_hidden_or_system(n)):
            full = os.path.join(folder, name)
            found.append(os.path.relpath(full, path).replace(os.sep, "/"))
            size = os.path.getsize(full) if os.path.exists(full) else -1
            sha256.update(f"{found[-1]}\0{size}\n".encode("utf-8", "surrogateescape"))
    return found, sha256.hexdigest()


def _directory_id(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _samples(files: list[str], owner: dict[str, str]) -> list[list[str]]:
    """Group files into rows by their names up to the extension.

    A caption file named after a whole file (0.jpg.txt) belongs to that file. Of several files of one modality with the same name,
    the first gets the files of the other modalities; each of the others is a row of its own.
    """
    names = set(files)
    stems: dict[str, list[str]] = defaultdict(list)
    captions: dict[str, str] = {}  # file -> the caption file that is named after it
    for file in files:
        stem, suffix = os.path.splitext(file)
        is_language = suffix[1:].lower() in owner and modalities.get(owner[suffix[1:].lower()]).language
        if is_language and stem in names and _suffix(stem) in owner:
            captions[stem] = file
        else:
            stems[stem].append(file)
    samples = []
    for of_stem in stems.values():
        of_stem.sort(key=lambda f: f not in captions)  # stable: files with a caption of their own first
        for sample in _split_stem(of_stem, owner, captions):
            samples.append(sample)
    position = {f: i for i, f in enumerate(files)}
    return sorted(samples, key=lambda s: min(position[f] for f in s))


def _split_stem(files: list[str], owner: dict[str, str], captions: dict[str, str]) -> list[list[str]]:
    """Split files with the same name up to the extension into rows; see `_samples`."""
    language = {n for n in modalities.names() if modalities.get(n).language}
    first: dict[str, str] = {}
    others = []
    for file in files:
        name = owner.get(_suffix(file))
        own_caption = [captions[file]] if file in captions else []
        # a file with a caption of its own shares no row with another one that has its own
        if name is None or name in first or (own_caption and language & first.keys()):
            others.append([file, *own_caption])
            continue
        first[name] = file
        if own_caption:
            first[owner[_suffix(own_caption[0])]] = own_caption[0]
    # non-text files first: the first file gives the row its id, which must not change if a caption file is added later
    ordered = sorted(first, key=lambda n: (modalities.get(n).language, modalities.names().index(n)))
    return ([[first[n] for n in ordered]] if first else []) + others
