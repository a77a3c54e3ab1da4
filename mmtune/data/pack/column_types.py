"""Types of metadata columns whose source has none (CSV, TSV, a folder's metadata.csv): a column is of numbers, or of strings.

A column is of numbers when it has a value and every value is a number as programs write them: `3`, `-0.5`, `.5`, `1e-05`. Leading zeros
(`007`), a plus sign, thousands separators, units, an exponent without a sign (`12E4` is a code) and whole numbers beyond 2^53 are
no numbers: one such value, and the column is of strings. Empty cells and NaN are missing values and do not count.
"""

import math
import re
from collections.abc import Iterable
from typing import TypeAlias

from mmtune.data.sources.row_source import Cells, InvalidRow

NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-][0-9]+)?")
WHOLE = re.compile(r"-?[0-9]+")
LARGEST_WHOLE = 2**53
"""Filters compare as float64, in which larger whole numbers are not distinct."""

NumberType: TypeAlias = type[int] | type[float]


def number_type(cell: str) -> NumberType | None:
    """`int` or `float` where a cell is a number, else None."""
    if WHOLE.fullmatch(cell):
        return int if NUMBER.fullmatch(cell) and abs(int(cell)) <= LARGEST_WHOLE else None
    return float if NUMBER.fullmatch(cell) and math.isfinite(float(cell)) else None


def number_columns(rows: Iterable[tuple[int, Cells | InvalidRow]], columns: Iterable[str]) -> dict[str, NumberType]:
    """Those of `columns` that are of numbers: `int` where every one is whole, else `float`. Rows that cannot be used do not count."""
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
    """A cell of a column of numbers as a string; None where it is empty or NaN."""
    stripped = str(cell).strip() if cell is not None else ""
    return None if stripped == "" or stripped.lower() == "nan" else stripped
