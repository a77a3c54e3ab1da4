"""Read a folder of media files as rows. Two layouts are recognised: files with sidecar captions, and one subfolder per class.

Sidecar layout: if a text file (e.g. .txt) is in the same folder as another file and has the same name up to the extension, all files
with that name form one row.

Class layout (otherwise): every file is a row, and the name of its folder is its class. The row's group is the folder name, and its
text is the folder name with `_` and `-` replaced by spaces. Files at the top level have no group and no text.

The id of a row is a path relative to the top folder. Hidden files and folders are ignored. All other files become rows; a file that
belongs to no modality becomes a rejected row.
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
"""The cells of a row, or (file, reason) if the file belongs to no modality."""


class MediaFolder:
    """The rows of a folder.

    files: paths relative to the folder, in sorted order
    sha256: hash of the names and sizes of the files
    rows: the rows
    """

    def __init__(self, path: Path):
        self.path = path
        self.files, sha256 = [], hashlib.sha256()
        ancestors: dict[str, set[tuple[int, int]]] = {}  # folder -> ids of the folders that contain it
        for folder, folders, names in os.walk(path, followlinks=True):
            inside = ancestors.pop(folder, set()) | {_directory_id(folder)}
            folders[:] = [d for d in sorted(folders) if not d.startswith(".") and d not in IGNORED]
            # skip symbolic links to a containing folder, which would make the walk endless
            folders[:] = [d for d in folders if _directory_id(os.path.join(folder, d)) not in inside]
            ancestors |= {os.path.join(folder, d): inside for d in folders}
            for name in sorted(n for n in names if not n.startswith(".") and n not in IGNORED):
                full = os.path.join(folder, name)
                self.files.append(os.path.relpath(full, path).replace(os.sep, "/"))
                size = os.path.getsize(full) if os.path.exists(full) else -1
                sha256.update(f"{self.files[-1]}\0{size}\n".encode("utf-8", "replace"))
        if not self.files:
            raise DataError(f"{path}: the folder is empty")
        self.sha256 = sha256.hexdigest()
        self.rows = self._rows()

    def _rows(self) -> list[FolderRow]:
        owner = modalities.by_extension()
        language = [n for n in modalities.names() if modalities.get(n).language]
        stems: dict[str, list[str]] = defaultdict(list)
        names = set(self.files)
        for file in self.files:
            stem = file.rpartition(".")[0] or file
            if stem in names:  # a sidecar whose name includes the extension of the media file: 0.jpg.txt for 0.jpg
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
        """Make a row from `files`.

        owner: file extension -> modality
        class_modality: text modality that gets the name of the folder as its value; None in the sidecar layout
        """
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
    """Split files with the same name up to the extension into rows.

    The first file of each modality goes into one common row. Each of the other files becomes a row of its own.
    """
    first: dict[str, str] = {}
    others = []
    for file in files:
        name = owner.get(_suffix(file))
        if name is None or name in first:
            others.append([file])
        else:
            first[name] = file
    # non-text files first: the first file gives the row its id, which must not change if a caption file is added later
    ordered = sorted(first, key=lambda n: (modalities.get(n).language, modalities.names().index(n)))
    return ([[first[n] for n in ordered]] if first else []) + others
