"""Filters as expressions of LanceDB."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from mmtune.index.query.filters import And, Compare, Filter, In, IsNull, Not, Or, Value, value_kind
from mmtune.index.stores import store_rows

if TYPE_CHECKING:
    from lancedb.expr import Expr

COLUMN_TYPES = {"n": "float64", "s": "string", "b": "bool_", "j": "bool_"}
"""Kind of a metadata value (`filters.value_kind`): the Arrow type of its column."""


class FilterExpression:
    """Translates a filter to a LanceDB expression over the columns that the table has.

    SQL logic has three truth values (true, false, null), and the filters of mmtune have two. Therefore `not` is pushed down to
    the comparisons, where the column `present` shows whether a value is missing. Any null that remains counts as false.
    """

    def __init__(self, expressions: ModuleType, columns: set[str]):
        """expressions: the module `lancedb.expr`; columns: the columns of the table"""
        self.columns, self.x = columns, expressions

    def of(self, f: Filter, positive: bool) -> "Expr":
        """Return the expression for `f`, or for `not f` when `positive` is False."""
        match f:
            case Not(term):
                return self.of(term, not positive)
            case And(terms) | Or(terms):
                joint = isinstance(f, And) == positive
                return self._join([self.of(t, positive) for t in terms], joint)
            case IsNull(path):
                present = self._join([self._has(store_rows.typed_column(k, path)) for k in COLUMN_TYPES], False)
                return ~present if positive else present
            case Compare(path, op, value):
                column = store_rows.typed_column(value_kind(value) or "", path)
                return self._leaf(column, positive, lambda c: _compare(c, op, self.x.lit(value)))
            case In(path, values):
                tests = []
                for value_type in COLUMN_TYPES:
                    options = [v for v in values if value_kind(v) == value_type]
                    if options:
                        test = functools.partial(_among, options, self.x.lit)
                        tests.append(self._leaf(store_rows.typed_column(value_type, path), positive, test))
                return self._join(tests, not positive)
        raise TypeError(type(f))

    def _leaf(self, column: str, positive: bool, test: "Callable[[Expr], Expr]") -> "Expr":
        if column not in self.columns:
            return self._constant(not positive)
        holds = test(self.x.col(column))
        return holds if positive else ~self._has(column) | ~holds

    def _has(self, column: str) -> "Expr":
        return self.x.col("present").contains(self.x.lit(f" {column} "))

    def _constant(self, value: bool) -> "Expr":
        return self.x.lit(1) == self.x.lit(1 if value else 0)

    def _join(self, terms: "list[Expr]", joint: bool) -> "Expr":
        """Join terms by `and` (joint=True) or `or`, as a balanced tree: a chain of thousands of terms would nest too deeply."""
        if len(terms) == 1:
            return terms[0]
        left, right = self._join(terms[: len(terms) // 2], joint), self._join(terms[len(terms) // 2 :], joint)
        return left & right if joint else left | right


def _compare(column: "Expr", op: str, value: "Expr") -> "Expr":
    return {"<": column.lt, "<=": column.lte, ">": column.gt, ">=": column.gte}[op](value)


def _among(values: list[Value], lit: "Callable[[Value], Expr]", column: "Expr") -> "Expr":
    return column == lit(values[0]) if len(values) == 1 else column.isin(values)
