"""A folder of files as rows: files of one stem are one row; a class per subfolder, or side-cars that carry the value.

Side-car layout (some file that is itself a value, like .txt, shares a folder and a stem with another file): rows are
what shares folder and stem. Otherwise every file is a row, and the folder it lies in names its class: the group is the
folder's name, the text the name with `_` and `-` as spaces; files at the top have neither.
Ids are paths relative to the folder. Hidden files and folders are not rows; any other file is one, packed or rejected.
"""

import hashlib
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmtune import modalities
from mmtune.errors import DataError

IGNORED = {"Thumbs.db", "desktop.ini", "__MACOSX"}


class Folder:
    """The rows of a folder. `files` are relative paths in order; `sha256` covers their names and sizes."""

    def __init__(self, path: Path):
        self.path = path
        self.files, sha = [], hashlib.sha256()
        for folder, folders, names in os.walk(path, followlinks=True):
            folders[:] = sorted(d for d in folders if not d.startswith(".") and d not in IGNORED)
            for name in sorted(n for n in names if not n.startswith(".") and n not in IGNORED):
                full = os.path.join(folder, name)
                self.files.append(os.path.relpath(full, path).replace(os.sep, "/"))
                sha.update(
                    f"{self.files[-1]}\0{os.path.getsize(full) if os.path.exists(full) else -1}\n".encode("utf-8", "replace")
                )
        if not self.files:
            raise DataError(f"{path}: an empty folder")
        if all(f.endswith(".tar") for f in self.files):
            raise DataError(f"{path}: holds shards already; they are DATA as they are, no packing needed")
        self.sha256 = sha.hexdigest()
        self.rows = self._rows()

    def _rows(self) -> list[dict[str, Any] | tuple[str, str]]:
        owner = modalities.by_extension()
        language = [n for n in modalities.names() if modalities.get(n).language]
        stems: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            stems[file.rpartition(".")[0] or file].append(file)
        kinds = {stem: {owner.get(_suffix(f)) for f in files} - {None} for stem, files in stems.items()}
        side_cars = any(k & set(language) and k - set(language) for k in kinds.values())
        rows: list[dict[str, Any] | tuple[str, str]] = []
        for files in stems.values():
            groups = _split(files, owner) if side_cars else [[f] for f in files]
            rows += [self._row(group, owner, None if side_cars or not language else language[0]) for group in groups]
        return rows

    def _row(self, files: list[str], owner: dict[str, str], named: str | None) -> dict[str, Any] | tuple[str, str]:
        """A row's cells, or (file, reason). `named`: the modality that takes the folder's name."""
        if _suffix(files[0]) not in owner:
            return files[0], f"no modality reads .{_suffix(files[0])} files"
        cells: dict[str, Any] = {owner[_suffix(f)]: Path(f) for f in files}
        parent = os.path.basename(os.path.dirname(files[0]))
        if named and parent:
            cells = {named: parent.replace("_", " ").replace("-", " ").strip(), "group": parent} | cells
        return cells | {"id": files[0]}


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _split(files: list[str], owner: dict[str, str]) -> list[list[str]]:
    """Files of one stem -> rows: one of each modality; files that no modality reads, and second ones, are rows of their own."""
    first: dict[str, str] = {}
    alone = []
    for file in files:
        name = owner.get(_suffix(file))
        if name is None or name in first:
            alone.append([file])
        else:
            first[name] = file
    # the row is called after what is not language: adding a side-car later must not change its id
    ordered = sorted(first, key=lambda n: (modalities.get(n).language, modalities.names().index(n)))
    return ([[first[n] for n in ordered]] if first else []) + alone
