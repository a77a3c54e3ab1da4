"""Which column is what, and a source row -> a job for the checkers.

Ids: the id column's value if there is one; else the row's first path (`#2`, `#3` ... where it repeats); else the row's
number. Rows added at a source's end change none of these.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmtune import modalities
from mmtune.data.sources.tables import Bad, Source
from mmtune.errors import DataError

FOLDER_NAME = re.compile(r"\w[\w .+-]{0,99}")
"""What a value of the split column may look like."""


@dataclass
class Job:
    """A row on its way into a shard. `values`: modality -> the bytes themselves, or a path or URL they are read from;
    `files` the same paths as the source spells them.

    `split` is "" when there are no splits, None when the row has none. `reason` is set once the row is known to be
    unusable; `file` is what that is about. `stamp`: size and time of the files behind it. `settled`: packed or
    rejected by an earlier run. Rows with a reason, and settled ones, are not checked. `held`: bytes it holds while it
    waits for its turn.
    """

    row: int
    split: str | None = None
    id: str = ""
    group: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    values: dict[str, bytes | str] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    file: str | None = None
    reason: str | None = None
    stamp: str | None = None
    settled: bool = False
    held: int = 0

    def paths(self) -> list[str]:
        """The local paths and URLs among `values`."""
        return [v for v in self.values.values() if isinstance(v, str)]


def stamp(job: Job) -> str:
    """Size and time of a job's local files as they are now; changes when one is replaced."""
    parts = []
    for path in job.paths():
        try:
            parts.append(f"{(s := os.stat(path)).st_size}:{s.st_mtime_ns}" if "://" not in path else "url")
        except (OSError, ValueError):
            parts.append("missing")
    return ",".join(parts)


@dataclass
class Plan:
    """Columns by role. `modalities` in the table's order."""

    source: Source
    modalities: dict[str, str]
    id: str | None
    group: str | None
    split: str | None
    meta: list[str]
    repeats: dict[bytes, int] = field(default_factory=dict)

    def columns(self) -> dict[str, str | None]:
        """Role -> source column, as index.json keeps it."""
        return {**self.modalities, "id": self.id, "group": self.group, "split": self.split}

    def job(self, number: int, cells: dict[str, Any] | Bad) -> Job:
        """The job of row `number`; one with a reason when the row is unusable already."""
        if isinstance(cells, Bad):
            return Job(number, None if self.split else "", file=cells.file, reason=cells.reason)
        job = Job(number, "", group=_text(cells.get(self.group)) if self.group else None)
        if self.split:
            job.split = _text(cells.get(self.split))
            if job.split is None or not FOLDER_NAME.fullmatch(job.split):
                job.reason = f"{self.split}: {'empty' if job.split is None else f'{job.split!r} cannot be a folder'}"
                job.split = None
        for name, column in self.modalities.items():
            try:
                self._value(job, name, cells.get(column))
            except ValueError as e:
                job.reason = job.reason or f"{name}: {e}"
        job.file = next(iter(job.files.values()), None)
        job.id = self._id(number, cells, job.file)
        job.meta = {c: v for c in self.meta if (v := plain(cells.get(c))) not in (None, "")}
        if not job.values and not job.reason:
            job.reason = f"no value: {' and '.join(self.modalities.values())} empty"
        return job

    def _value(self, job: Job, name: str, cell: Any) -> None:
        """Note modality `name`'s value in the job, if the cell has one. ValueError: it has one, but an unusable one."""
        modality = modalities.get(name)
        path, data = _cell(cell)
        if data is None and path is None:
            return
        suffix = os.path.splitext(path.partition("?")[0])[1][1:].lower() if path else ""
        if data is None and modality.inline and not isinstance(cell, Path):
            path, data = None, _utf8(cell if isinstance(cell, str) else str(path))
        elif data is None and not isinstance(cell, str | Path | dict | list):
            raise ValueError(f"neither a path nor bytes but a {type(cell).__name__}")
        known = suffix in modality.extensions and modalities.by_extension()[suffix] == name
        job.extensions[name] = suffix if known else modality.extensions[0]
        if path is not None:
            job.files[name] = path
            job.values[name] = path if "://" in path else os.path.join(self.source.folder, path)
        if data is not None:
            job.values[name] = data

    def _id(self, number: int, cells: dict[str, Any], path: str | None) -> str:
        given = _text(cells.get(self.id)) if self.id else None
        if given:
            return given
        if not path:
            return f"{number:08d}"
        key = blake2b(_utf8(path), digest_size=8).digest()
        self.repeats[key] = count = self.repeats.get(key, 0) + 1
        return _utf8(path).decode() + (f"#{count}" if count > 1 else "")


def _cell(cell: Any) -> tuple[str | None, bytes | None]:
    """(path or string, bytes) of a cell; (None, None) for an empty one. Of a list the first that is not empty."""
    if isinstance(cell, list):
        return next((c for c in map(_cell, cell) if c != (None, None)), (None, None))
    if isinstance(cell, dict):
        data, path = cell.get("bytes"), cell.get("path")
        if not isinstance(data, bytes | None) or not isinstance(path, str | None) or not {"bytes", "path"} & set(cell):
            raise ValueError(f"neither a path nor bytes but an object with {', '.join(map(str, cell)) or 'nothing'}")
        return path or None, data
    if isinstance(cell, bytes | bytearray):
        return None, bytes(cell)
    return _text(str(cell)) if isinstance(cell, Path) else _text(cell), None


def _text(cell: Any) -> str | None:
    """A cell as a stripped string, None when empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    string = cell if isinstance(cell, str) else json.dumps(plain(cell)) if isinstance(cell, dict | list | bool) else str(cell)
    return _utf8(string.strip()).decode() or None


def _utf8(string: str) -> bytes:
    return string.encode("utf-8", "replace")


def plain(value: Any) -> Any:
    """A cell as JSON can carry it: dates and decimals as strings, NaN and bytes as None."""
    if isinstance(value, str):
        return _utf8(value).decode()
    if value is None or isinstance(value, bytes | bytearray) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _find(source: Source, asked: str, role: str) -> str:
    """The column that was asked for by name, or by name but for case."""
    loose = [c for c in source.columns if c.strip().lower() == asked.strip().lower()]
    if asked in source.columns:
        return asked
    if len(loose) == 1:
        return loose[0]
    near = difflib.get_close_matches(asked, source.columns, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(f"{source.path}: no column {asked!r} (--{role}); {hint}columns: {', '.join(source.columns)}")


def _unasked(columns: Iterable[str], names: Iterable[str]) -> str | None:
    lower = {c.strip().lower(): c for c in reversed(list(columns))}
    return next((lower[n] for n in names if n in lower), None)


def make_plan(source: Source, columns: dict[str, str], id: str | None, group: str | None, split: str | None) -> Plan:
    """Roles of a source's columns: as asked, else by each modality's usual names. Raises DataError listing what there is."""
    for name in columns:
        modalities.get(name)
    taken = {
        role: _find(source, c, role) for role, c in (("id", id), ("group", group), ("split", split), *columns.items()) if c
    }
    roles: dict[str, str] = {}
    for name in modalities.names():
        usual = dict.fromkeys((name, *modalities.get(name).columns))
        free = [c for c in source.columns if c not in {*roles.values(), *(taken[n] for n in columns if n in taken)}]
        if column := taken.get(name) or _unasked(free, usual):
            roles[name] = column
    if not roles:
        options = ", ".join(f"--{n}" for n in modalities.names())
        raise DataError(f"{source.path}: no column to pack; columns: {', '.join(source.columns)}; name them with {options}")
    free = [c for c in source.columns if c not in {*taken.values(), *roles.values()}]
    identity, grouping = taken.get("id") or _unasked(free, ["id"]), taken.get("group") or _unasked(free, ["group"])
    used = {*roles.values(), identity, grouping}
    return Plan(source, roles, identity, grouping, taken.get("split"), [c for c in source.columns if c not in used])
