"""Infer whether a metadata column is numeric, for sources without types (CSV, TSV, a folder's metadata.csv).

A column is numeric if it has a value and all its values look like numbers written by a program: `3`, `-0.5`, `.5`, `1e-05`. A single
other value makes it a column of strings. Not treated as numbers are: leading zeros (`007`), a plus sign, thousands separators,
units, an exponent without a sign (`12E4` may be a product code), and whole numbers above 2^53. Empty cells and NaN are missing
values and are ignored.
"""

import math
import re
from collections.abc import Iterable
from typing import TypeAlias

from mmtune.data.sources.row_source import Cells, InvalidRow

NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-][0-9]+)?")
WHOLE = re.compile(r"-?[0-9]+")
LARGEST_WHOLE = 2**53
"""Filters of the search compare float64 numbers, which cannot represent all larger whole numbers exactly."""

NumberType: TypeAlias = type[int] | type[float]


def number_type(cell: str) -> NumberType | None:
    """The type of a cell: `int` or `float` if it is a number, else None."""
    if WHOLE.fullmatch(cell):
        return int if NUMBER.fullmatch(cell) and abs(int(cell)) <= LARGEST_WHOLE else None
    return float if NUMBER.fullmatch(cell) and math.isfinite(float(cell)) else None


def number_columns(rows: Iterable[tuple[int, Cells | InvalidRow]], columns: Iterable[str]) -> dict[str, NumberType]:
    """Find the numeric columns among `columns`. Returns column -> `int` if all values are whole numbers, else `float`.

    Invalid rows are ignored.
    """
    possible, found = set(columns), dict[str, NumberType]()
    for _, cells in rows if possible else ():
        if not possible:
            break
        if isinstance(cells, InvalidRow):
            continue
        for column in list(possible):
            cell = missing_or_stripped(cells.get(column))
            if cell is None:
                continue
            kind = number_type(cell)
            if kind is None:
                possible.remove(column)
            elif found.get(column) is not float:
                found[column] = kind
    return {c: kind for c, kind in found.items() if c in possible}


def missing_or_stripped(cell: object) -> str | None:
    """Return a cell of a numeric column as a string without surrounding white space; None if it is empty or NaN."""
    stripped = str(cell).strip() if cell is not None else ""
    return None if stripped == "" or stripped.lower() == "nan" else stripped
