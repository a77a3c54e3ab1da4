"""Media of the rows of a source: which files or URLs a cell names, and the paths under which pairs.parquet names them."""

import os
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from mmtune import modalities
from mmtune.data.pack.columns import path_or_bytes
from mmtune.data.pack.file_names import existing_path
from mmtune.pairs.drop_counts import DropCounts


@dataclass
class MediaCells:
    """Reads the cells that name media files.

    folder: folder to which paths in cells are relative
    out: the directory of pairs.parquet
    files: the directory in which `out` is being written; values that are bytes are stored there, in media/
    drops: counts of files that are missing
    separator: what separates several paths in one cell; None if a cell has one
    """

    folder: Path
    out: Path
    files: Path
    drops: DropCounts
    separator: str | None = None
    _folder: str = field(init=False)
    _out: str = field(init=False)

    def __post_init__(self) -> None:
        self._folder, self._out = os.path.realpath(self.folder), os.path.realpath(self.out)

    def paths(self, cell: object, modality: str, where: str) -> list[str]:
        """The usable files and URLs of a cell, without repetitions: paths relative to `out`, or URLs.

        cell: a path or URL, bytes, an object with "bytes" and "path", or a list of these
        where: the row, for the examples of what is dropped
        """
        values = cell if isinstance(cell, list) else [cell]
        if self.separator:
            values = [part for v in values for part in (v.split(self.separator) if isinstance(v, str) else [v])]
        found: dict[str, None] = {}
        for value in values:
            try:
                path, data = path_or_bytes(value)
            except ValueError as e:
                self.drops.add(f"{modality}: {e}", where, unit="files")
                continue
            if data is not None:
                found[self._store(data, path, modality)] = None
            elif path is not None and (usable := self.path(path)) is not None:
                found[usable] = None
            elif path is not None:
                self.drops.add("no such file", f"{where}: {path}", unit="files")
        return list(found)

    def path(self, path: str) -> str | None:
        """The path of a file relative to `out`; a URL unchanged; None if there is no such file."""
        if "://" in path:
            return path
        full = existing_path(os.path.join(self._folder, path))
        if not os.path.isfile(full):
            return None
        try:
            return os.path.relpath(full, self._out)
        except ValueError:  # on another drive of Windows
            return full

    def _store(self, data: bytes, path: str | None, modality: str) -> str:
        suffix = os.path.splitext(path or "")[1].lower()
        extensions = modalities.get(modality).extensions
        name = f"media/{blake2b(data, digest_size=12).hexdigest()}{suffix if suffix[1:] in extensions else '.' + extensions[0]}"
        file = self.files / name
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_bytes(data)
        return name
