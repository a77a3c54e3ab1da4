"""Columns of a source that are carried into pairs.parquet as metadata: their names there, their types, and their values."""

import json
from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa

from mmtune import modalities
from mmtune.data.pack.column_types import missing_or_stripped, number_columns
from mmtune.data.pack.columns import json_value
from mmtune.data.pack.negative_columns import NEGATIVE_NAME, POSITIVE_NAMES, QUERY_NAMES
from mmtune.data.sources.row_source import Cells, InvalidRow, RowSource

PREFIX = "source."
"""Put before the name of a carried column that `mmtune pack` would take for something else, such as a second column of captions."""


def reserved_names() -> set[str]:
    """Names of columns that `mmtune pack` recognises, in lower case."""
    usual = {c for n in modalities.names() for c in (n, *modalities.get(n).columns)}
    return {"id", "group", *usual, *QUERY_NAMES, *POSITIVE_NAMES}


class CarriedColumns:
    """The carried columns of a source.

    types: name in pairs.parquet -> Arrow type, in the order of the source
    """

    def __init__(self, source: RowSource, columns: Iterable[str], taken: Collection[str] = ()):
        """Read the source once, to find the types. Columns of CSV and XML are numbers if all their values are.

        columns: the columns to carry
        taken: further names that pairs.parquet has already
        """
        columns = list(columns)
        reserved = reserved_names() | {name.lower() for name in taken}
        self._names = {c: PREFIX + c if c.lower() in reserved or NEGATIVE_NAME.fullmatch(c.lower()) else c for c in columns}
        self._numbers = number_columns(source.rows(set()), [c for c in columns if c in source.untyped])
        kinds: dict[str, set[type]] = {c: set() for c in columns}
        for _, cells in source.rows(set()):
            if not isinstance(cells, InvalidRow):
                for c in columns:
                    if (value := json_value(cells.get(c))) not in (None, ""):
                        kinds[c].add(type(value))
        self.types = {self._names[c]: self._type(c, kinds[c]) for c in columns if kinds[c]}

    def _type(self, column: str, kinds: set[type]) -> pa.DataType:
        number = self._numbers.get(column)
        kinds = {number} if number is not None else kinds
        if kinds == {bool}:
            return pa.bool_()
        if kinds == {int}:
            return pa.int64()
        return pa.float64() if kinds <= {int, float} else pa.string()

    def values(self, cells: Cells) -> dict[str, object]:
        """The values of a row, by their names in pairs.parquet; without those that are missing."""
        found: dict[str, object] = {}
        for column, name in self._names.items():
            value = json_value(cells.get(column))
            if value in (None, "") or name not in self.types:
                continue
            if (number := self._numbers.get(column)) is not None:
                stripped = missing_or_stripped(value)
                value = None if stripped is None else number(stripped)
            elif self.types[name] == pa.string() and not isinstance(value, str):
                value = json.dumps(value, ensure_ascii=False)
            if value is not None:
                found[name] = value
        return found


def attribute_strings(cells: Mapping[str, object]) -> dict[str, str]:
    """The cells of a row as text for captions: lists joined by commas, whole numbers without a fraction; no objects, no bytes."""
    return {name: text for name, cell in cells.items() if (text := _attribute(cell))}


def _attribute(cell: object) -> str:
    value = json_value(cell)
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(filter(None, map(_attribute, value))))
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return "" if value is None or isinstance(value, dict | bool) else str(value).strip()
