"""Assign roles to the columns of a source (modality, id, group, split, metadata), and make PackRows from its rows.

The id of a row is the value of the id column if there is one, else its first file path, else its row number. If a path repeats, or
if a list of values makes several rows, `#2`, `#3` ... is appended. Appending rows to a source does not change the ids of its other
rows.
"""

import difflib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.identity_labels import decode_name, identity_string, shared_group
from mmtune.data.list_values import pair_lists
from mmtune.data.pack.column_types import NumberType, missing_or_stripped, number_columns
from mmtune.data.pack.file_names import existing_path
from mmtune.data.sources.row_source import Cells, InvalidRow, RowSource
from mmtune.errors import DataError
from mmtune.modalities import by_extension

SPLIT_NAME = re.compile(r"\w[\w .+-]{0,99}")
"""Allowed values of the split column, which become directory names."""


IDENTIFYING = ("id", "group")
"""Columns with these names are always strings, even if they are packed as metadata and look numeric."""


@dataclass
class PackRow:
    """A row to be checked and packed.

    number: position among all PackRows, from 1
    source_row: number of the source row that it was made from, from 1
    item: position, from 1, among the rows of its source row (list values, negatives); 0 if it is the only one
    split: value of the split column; "" if there is no split column; None if the row's value cannot be used
    id, group, meta: identity and metadata
    values: modality -> the bytes, or a path or URL from which they will be read
    extensions: modality -> file extension of the value in the shard
    files: modality -> path or URL as it is written in the source
    file: the file that `reason` is about
    reason: why the row is rejected; None if it is not rejected
    stamp: size and modification time of the row's files when they were read
    settled: whether an earlier, interrupted run has packed or rejected the row
    held: number of bytes that the row occupies in memory after it was checked
    reencoded: modality -> description of a change of its bytes (see `Modality.reencode`)
    dropped: whether the row is left out because the user has listed its id (`pack --drop FILE`)

    Rows that have a reason, are settled or are dropped are not checked.
    """

    number: int
    source_row: int
    item: int = 0
    split: str | None = None
    id: str = ""
    group: str | None = None
    meta: JsonObject = field(default_factory=dict)
    values: dict[str, bytes | str] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    file: str | None = None
    reason: str | None = None
    stamp: str | None = None
    settled: bool = False
    held: int = 0
    reencoded: dict[str, str] = field(default_factory=dict)
    dropped: bool = False

    def paths(self) -> list[str]:
        """The values that are local paths or URLs."""
        return [v for v in self.values.values() if isinstance(v, str)]


def file_stamp(row: PackRow) -> str:
    """The current size and modification time of the row's local files, by which a changed file is detected."""
    parts = []
    for path in row.paths():
        try:
            parts.append(f"{(s := os.stat(path)).st_size}:{s.st_mtime_ns}" if "://" not in path else "url")
        except (OSError, ValueError):
            parts.append("missing")
    return ",".join(parts)


@dataclass
class ColumnRoles:
    """The roles of the columns of a source.

    source: the source
    modalities: modality -> column
    id, group, split: column, or None if there is none
    meta: the other columns, which are packed as metadata
    list_rows: number of rows made from list values other than the first of each list; counted by `rows`
    media_names: metadata column -> number of cells that look like the name of a media file; counted by `rows`
    numbers: metadata columns that are numeric in a source without types (see `column_types`)
    excluded: modalities that the user has excluded
    """

    source: RowSource
    modalities: dict[str, str]
    id: str | None
    group: str | None
    split: str | None
    meta: list[str]
    list_rows: int = 0
    media_names: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, NumberType] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    _modality_of: dict[str, str] = field(default_factory=by_extension)
    _path_counts: dict[bytes, int] = field(default_factory=dict)

    def by_role(self) -> dict[str, str | None]:
        """Role -> source column, in the form that is stored in index.json."""
        return {**self.modalities, "id": self.id, "group": self.group, "split": self.split}

    def rows(self, source_row: int, cells: Cells | InvalidRow, first_number: int) -> list[PackRow]:
        """Make the PackRows of one source row: one row, or one for each value of a list. Unusable rows get a reason.

        source_row: number of the source row, from 1
        cells: cells of the source row
        first_number: `PackRow.number` of the first row
        """
        if isinstance(cells, InvalidRow):
            return [PackRow(first_number, source_row, split=None if self.split else "", file=cells.file, reason=cells.reason)]
        try:
            of_cells, uneven = pair_lists(list_values({n: cells.get(c) for n, c in self.modalities.items()}))
            reason = f"{uneven}; give lists of equal length, or one value" if uneven else None
        except ValueError as e:
            of_cells, reason = [{}], str(e)
        several = len(of_cells) > 1
        rows = []
        for number, of_row in enumerate(of_cells):
            row = PackRow(first_number + number, source_row, number + 1 if several else 0)
            row.reason = reason
            rows.append(self._fill(row, cells, of_row))
        if several:
            self.list_rows += len(rows) - 1
            for row in rows[1:]:
                row.group = row.group or rows[0].group
            if rows[0].group is None:
                content = repr([[(n, _content(v)) for n, v in row.values.items()] for row in rows]).encode("utf-8", "replace")
                for row in rows:
                    row.group = shared_group(rows[0].id, content)
        return rows

    def _fill(self, row: PackRow, cells: Cells, values: Mapping[str, object]) -> PackRow:
        """Set the identity, metadata and values of a row.

        cells: all cells of the source row
        values: modality -> the value of this row
        """
        row.split, row.group = "", identity_string(_string(nested_cell(cells, self.group))) if self.group else None
        if self.split:
            row.split = _string(nested_cell(cells, self.split))
            if row.split is None or not SPLIT_NAME.fullmatch(row.split):
                row.reason = f"{self.split}: {'empty' if row.split is None else f'{row.split!r} cannot be a folder'}"
                row.split = None
        for name, cell in values.items():
            try:
                self._add_value(row, name, cell)
            except ValueError as e:
                row.reason = row.reason or f"{name}: {e}"
        row.file = next(iter(row.files.values()), None)
        row.id = self._id(row, cells)
        row.meta = {c: v for c in self.meta if (v := self._meta_value(c, cells.get(c))) not in (None, "")}
        self.media_names.update(c for c, v in row.meta.items() if isinstance(v, str) and self._unpacked_modality(v))
        if not row.values and not row.reason:
            row.reason = f"no value: {' and '.join(self.modalities.values())} empty"
        return row

    def _meta_value(self, column: str, cell: object) -> object:
        if (kind := self.numbers.get(column)) is not None:
            number = missing_or_stripped(cell)
            return None if number is None else kind(number)
        return json_value(cell)

    def _unpacked_modality(self, name: str) -> str | None:
        """The modality of a media file name if no column of the source is packed as that modality, else None."""
        modality = self._modality_of.get(os.path.splitext(name)[1][1:].lower())
        if modality is None or modality in {*self.modalities, *self.excluded} or modalities.get(modality).language:
            return None
        return modality

    def _add_value(self, row: PackRow, name: str, cell: object) -> None:
        """Add the value in `cell` to the row, unless the cell is empty. Raises ValueError if the value cannot be used."""
        modality = modalities.get(name)
        path, data = path_or_bytes(cell)
        if data is None and path is None:
            return
        suffix = os.path.splitext(path.partition("?")[0])[1][1:].lower() if path else ""
        if data is None and modality.inline and not isinstance(cell, Path):
            path, data = None, _utf8(cell if isinstance(cell, str) else str(path))
        elif data is None and not isinstance(cell, str | Path | dict):
            raise ValueError(f"neither a path nor bytes but a {type(cell).__name__}")
        known = suffix in modality.extensions and self._modality_of[suffix] == name
        row.extensions[name] = suffix if known else modality.extensions[0]
        if path is not None:
            row.files[name] = decode_name(path)
            row.values[name] = path if "://" in path else existing_path(os.path.join(self.source.folder, path))
        if data is not None:
            row.values[name], changed = modality.reencode(data)
            row.reencoded |= {name: changed} if changed else {}

    def _id(self, row: PackRow, cells: Cells) -> str:
        given = identity_string(_string(nested_cell(cells, self.id))) if self.id else None
        if given or not row.file:
            return (given or f"{row.source_row:08d}") + (f"#{row.item}" if row.item > 1 else "")
        path = unicodedata.normalize("NFC", _utf8(row.file).decode())
        key = blake2b(path.encode(), digest_size=8).digest()
        self._path_counts[key] = count = self._path_counts.get(key, 0) + 1
        return path + (f"#{count}" if count > 1 else "")


def nested_cell(cells: Cells, column: str) -> object:
    """The cell of a column, or of a field within a cell that is an object: "product.sku"."""
    if column in cells:
        return cells[column]
    head, dot, rest = column.partition(".")
    inner = cells.get(head) if dot else None
    return nested_cell(inner, rest) if isinstance(inner, dict) else None


def _content(value: bytes | str) -> bytes | str:
    return value if isinstance(value, str) else blake2b(value, digest_size=16).digest()


def list_values(cells: Mapping[str, object]) -> dict[str, list[object]]:
    """Return modality -> list of the values in its cell. A cell that is not a list gives a list of one value.

    Empty values are removed, except when several cells are lists: these are paired by position, so the empty values are kept.
    Raises ValueError for a list whose elements cannot be values.
    """
    values = {}
    lists = [n for n, cell in cells.items() if isinstance(cell, list) and len(cell) > 1]
    for name, cell in cells.items():
        items = cell if isinstance(cell, list) else [cell]
        inline = modalities.get(name).inline
        wrong = next((c for c in items if isinstance(c, list) or (isinstance(c, int | float) and not inline)), None)
        if isinstance(cell, list) and wrong is not None:
            raise ValueError(f"{name}: neither paths nor bytes but a list of {type(wrong).__name__}")
        values[name] = items if len(lists) > 1 and name in lists else [c for c in items if not _is_empty(c)]
    return values


def _is_empty(cell: object) -> bool:
    try:
        return path_or_bytes(cell) == (None, None)
    except ValueError:  # not empty, but unusable: `_add_value` will raise the error
        return False


def path_or_bytes(cell: object) -> tuple[str | None, bytes | None]:
    """Return (path or string, bytes) of a cell, one of which is None; (None, None) for an empty cell."""
    if isinstance(cell, dict):
        data, path = cell.get("bytes"), cell.get("path")
        if not isinstance(data, bytes | None) or not isinstance(path, str | None) or not {"bytes", "path"} & set(cell):
            raise ValueError(f"neither a path nor bytes but an object with {', '.join(map(str, cell)) or 'nothing'}")
        return path or None, data
    if isinstance(cell, bytes | bytearray):
        return None, bytes(cell)
    return str(cell) if isinstance(cell, Path) else _string(cell), None


def _string(cell: object) -> str | None:
    """Convert a cell to a string without surrounding white space; None if it is empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        cell = int(cell)  # pandas writes integers as floats if values are missing in the column
    if isinstance(cell, Decimal) and cell.is_finite() and cell == cell.to_integral_value():
        cell = int(cell)
    if isinstance(cell, dict | list | bool):
        cell = json.dumps(json_value(cell))
    return _utf8(str(cell).strip()).decode() or None


def _utf8(string: str) -> bytes:
    return string.encode("utf-8", "replace")


def json_value(value: object) -> object:
    """Convert a cell to data that JSON can represent: dates to strings, decimals to numbers, NaN and bytes to None."""
    if isinstance(value, str):
        return _utf8(value).decode()
    if value is None or isinstance(value, bytes | bytearray) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Decimal):
        places = value.as_tuple().exponent
        return None if not value.is_finite() else int(value) if places == 0 else float(value)
    if isinstance(value, dict):
        return {str(json_value(k)): json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(v) for v in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def named_column(source: RowSource, name: str, role: str) -> str:
    """Find the column that the user named, ignoring case if no column matches exactly. Raises DataError if there is none."""
    if name in source.columns or (role in ("id", "group", "split") and name.partition(".")[0] in source.columns):
        return name
    same_letters = [c for c in source.columns if c.strip().lower() == name.strip().lower()]
    if len(same_letters) == 1:
        return same_letters[0]
    nearest = difflib.get_close_matches(name, source.columns, 1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise DataError(f"{source.path}: no column {name!r} (--{role}); {hint}columns: {', '.join(source.columns)}")


def _usual_column(columns: Iterable[str], usual: Iterable[str]) -> str | None:
    """Find a column by usual names, ignoring case; the first matching name counts. None if no name matches."""
    lower = {c.strip().lower(): c for c in reversed(list(columns))}
    return next((lower[n] for n in usual if n in lower), None)


def assign_columns(
    source: RowSource, columns: dict[str, str], id: str | None, group: str | None, split: str | None
) -> ColumnRoles:
    """Assign roles to the columns of a source. Columns that the user does not name are found by the usual names of each role.

    columns: modality -> column; "" means that the modality is not packed
    id, group, split: column, or None

    Raises DataError, which lists all columns, if a named column does not exist or no column has a modality.
    """
    for name in columns:
        if name in ("id", "group", "split"):
            raise DataError(f"columns: {name!r} is no modality; write {name}={columns[name]!r} beside columns")
        modalities.get(name)
    named = {
        role: named_column(source, c, role)
        for role, c in (("id", id), ("group", group), ("split", split), *columns.items())
        if c
    }
    by_modality: dict[str, str] = {}
    for name in modalities.names():
        if columns.get(name) == "":  # the user has excluded this modality
            continue
        usual = dict.fromkeys((name, *modalities.get(name).columns))
        free = [c for c in source.columns if c not in {*by_modality.values(), *(named[n] for n in columns if n in named)}]
        if column := named.get(name) or _usual_column(free, usual):
            by_modality[name] = column
    if not by_modality:
        options = ", ".join(f"--{n}" for n in modalities.names())
        raise DataError(f"{source.path}: no column to pack; columns: {', '.join(source.columns)}; name them with {options}")
    free = [c for c in source.columns if c not in {*named.values(), *by_modality.values()}]
    id_column, group_column = (
        named.get("id") or _usual_column(free, ["id"]),
        named.get("group") or _usual_column(free, ["group"]),
    )
    used = {*by_modality.values(), id_column, group_column}
    excluded = frozenset(n for n, c in columns.items() if c == "")
    meta = [c for c in source.columns if c not in used]
    numbers = number_columns(source.rows(set()), [c for c in meta if c in source.untyped and c.lower() not in IDENTIFYING])
    return ColumnRoles(
        source, by_modality, id_column, group_column, named.get("split"), meta, numbers=numbers, excluded=excluded
    )
