"""A folder of media files as rows: a class per subfolder, or files that belong together because they share a stem.

Sidecar layout (a text file, like .txt, shares folder and stem with another file): all files of one folder and
stem are one row. Otherwise every file is a row, and its folder names its class: the group is the folder's name, its text that name
with `_` and `-` as spaces; files at the top have neither.
Ids are paths relative to the folder. Hidden files and folders are not rows; any other file is one, packed or rejected.
"""

import hashlib
import os
from collections import defaultdict
from pathlib import Path
from typing import TypeAlias

from mmtune import modalities
from mmtune.errors import DataError

IGNORED = {"Thumbs.db", "desktop.ini", "__MACOSX"}

FolderRow: TypeAlias = "dict[str, object] | tuple[str, str]"
"""A row's cells, or (file, reason) where no modality reads the file."""


class MediaFolder:
    """The rows of a folder. files: relative paths in order; sha256: of their names and sizes."""

    def __init__(self, path: Path):
        self.path = path
        self.files, sha256 = [], hashlib.sha256()
        ancestors: dict[str, set[tuple[int, int]]] = {}  # folder -> itself and those above it
        for folder, folders, names in os.walk(path, followlinks=True):
            inside = ancestors.pop(folder, set()) | {_directory_id(folder)}
            folders[:] = [d for d in sorted(folders) if not d.startswith(".") and d not in IGNORED]
            # a link to a folder above would be walked for ever
            folders[:] = [d for d in folders if _directory_id(os.path.join(folder, d)) not in inside]
            ancestors |= {os.path.join(folder, d): inside for d in folders}
            for name in sorted(n for n in names if not n.startswith(".") and n not in IGNORED):
                full = os.path.join(folder, name)
                self.files.append(os.path.relpath(full, path).replace(os.sep, "/"))
                size = os.path.getsize(full) if os.path.exists(full) else -1
                sha256.update(f"{self.files[-1]}\0{size}\n".encode("utf-8", "replace"))
        if not self.files:
            raise DataError(f"{path}: an empty folder")
        self.sha256 = sha256.hexdigest()
        self.rows = self._rows()

    def _rows(self) -> list[FolderRow]:
        owner = modalities.by_extension()
        language = [n for n in modalities.names() if modalities.get(n).language]
        stems: dict[str, list[str]] = defaultdict(list)
        names = set(self.files)
        for file in self.files:
            stem = file.rpartition(".")[0] or file
            if stem in names:  # a sidecar named after the whole file: 0.jpg.txt beside 0.jpg
                stem = stem.rpartition(".")[0] or stem
            stems[stem].append(file)
        present = [{owner[_suffix(f)] for f in files if _suffix(f) in owner} for files in stems.values()]
        has_sidecars = any(names & set(language) and names - set(language) for names in present)
        class_modality = None if has_sidecars or not language else language[0]
        rows: list[FolderRow] = []
        for files in stems.values():
            groups = _split_stem(files, owner) if has_sidecars else [[f] for f in files]
            rows += [self._row(group, owner, class_modality) for group in groups]
        return rows

    def _row(self, files: list[str], owner: dict[str, str], class_modality: str | None) -> FolderRow:
        """One row of `files`. class_modality: the modality whose value is the folder's name."""
        if _suffix(files[0]) not in owner:
            return files[0], f"no modality reads .{_suffix(files[0])} files"
        cells: dict[str, object] = {owner[_suffix(f)]: Path(f) for f in files}
        parent = os.path.basename(os.path.dirname(files[0]))
        if class_modality and parent:
            cells = {class_modality: parent.replace("_", " ").replace("-", " ").strip(), "group": parent} | cells
        return cells | {"id": files[0]}


def _directory_id(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _split_stem(files: list[str], owner: dict[str, str]) -> list[list[str]]:
    """Files of one stem -> rows: the first file of each modality together; every other file is a row of its own."""
    first: dict[str, str] = {}
    others = []
    for file in files:
        name = owner.get(_suffix(file))
        if name is None or name in first:
            others.append([file])
        else:
            first[name] = file
    # the row's id is the path of a value that is not text: adding a sidecar later must not change it
    ordered = sorted(first, key=lambda n: (modalities.get(n).language, modalities.names().index(n)))
    return ([[first[n] for n in ordered]] if first else []) + others
