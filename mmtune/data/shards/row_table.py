"""The columns of all rows of a dataset: a memory-mapped Arrow table, or a view of some of its rows.

Columns are read from disk when they are used. Python objects are created only for the rows that are asked for.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

T = TypeVar("T", str, str | None)

CHUNK = 1 << 14
"""Number of strings that are converted at a time while iterating over a column."""


class StringColumn(Sequence[T], Generic[T]):
    """A read-only sequence of strings that are kept in Arrow: `column[i]` and slices create Python strings, `len` does not.

    It equals a list with the same strings. pyarrow reads it without Python strings.
    """

    def __init__(self, array: pa.Array, rows: np.ndarray | None = None):
        """array: the strings
        rows: row numbers of a view; None means all rows
        """
        self.array, self.rows = array, rows

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return self.take(np.arange(*at.indices(len(self))))
        i = operator.index(at)
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        i %= len(self)
        return self.array[i if self.rows is None else int(self.rows[i])].as_py()

    def take(self, rows: "np.ndarray | Sequence[int]") -> list[T]:
        """The strings of some rows, as a list."""
        at = np.asarray(rows, np.int64)
        at = at if self.rows is None else self.rows[at]
        return self.array.take(pa.array(at)).to_pylist()

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | tuple | StringColumn):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        array = self.array if self.rows is None else self.array.take(pa.array(self.rows))
        return array if type is None else array.cast(type)

    def __reduce__(self) -> tuple[type, tuple[pa.Array]]:
        return StringColumn, (self.__arrow_array__(),)

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''}] ({len(self)} strings)"


def concat_strings(columns: Sequence[StringColumn[T]]) -> StringColumn[T]:
    """Concatenate columns of strings; with a single column, nothing is copied."""
    if len(columns) == 1:
        return columns[0]
    return StringColumn(pa.concat_arrays([c.__arrow_array__() for c in columns]))


def repeated_strings(column: StringColumn[str]) -> set[str]:
    """The strings that occur more than once."""
    counts = pc.value_counts(column.__arrow_array__())
    return set(counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist())


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _numpy(column: pa.Array) -> np.ndarray:
    """The numbers of a column without nulls. Nothing is copied (pyarrow's `to_numpy` does not either, but imports pandas)."""
    values = np.frombuffer(column.buffers()[1] or b"", np.dtype(str(column.type)))
    return values[column.offset : column.offset + len(column)]


class RowTable:
    """Columns of rows. See `combine_tables` for their names.

    names: names of the columns
    """

    def __init__(self, table: pa.Table, rows: np.ndarray | None = None, replaced: Mapping[str, np.ndarray] | None = None):
        """table: the columns of all rows, each one contiguous array
        rows: row numbers of a view; None means all rows
        replaced: columns of numbers that replace those of `table`; they have the length of the view
        """
        self.table, self.rows, self.replaced = table, rows, dict(replaced or {})
        self.names = frozenset(table.column_names)
        self._numbers: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers. Of a whole table it is memory-mapped, so it cannot be written to."""
        if name in self.replaced:
            return self.replaced[name]
        if name not in self._numbers:
            column = _numpy(_one_array(self.table[name]))
            self._numbers[name] = column if self.rows is None else column[self.rows]
        return self._numbers[name]

    def number(self, name: str, i: int) -> int:
        """The value of one row in a column of numbers."""
        if name in self.replaced:
            return int(self.replaced[name][i])
        return self.table[name][i if self.rows is None else int(self.rows[i])].as_py()

    def strings(self, name: str) -> StringColumn:
        """A column of strings."""
        return StringColumn(_one_array(self.table[name]), self.rows)

    def take(self, rows: np.ndarray) -> "RowTable":
        """A view of some rows."""
        replaced = {name: column[rows] for name, column in self.replaced.items()}
        return RowTable(self.table, rows if self.rows is None else self.rows[rows], replaced)

    def replace(self, columns: Mapping[str, np.ndarray]) -> "RowTable":
        """A view with other columns of numbers."""
        return RowTable(self.table, self.rows, {**self.replaced, **columns})

    def __getstate__(self) -> dict[str, object]:
        table = self.table if self.rows is None else self.table.take(pa.array(self.rows)).combine_chunks()
        return {**self.__dict__, "table": table, "rows": None, "_numbers": {}}
