"""Check a filter before the search: reject a misspelt column name, and a number that is compared with strings."""

import difflib
from collections.abc import Iterator, Mapping

from mmtune.errors import DataError
from mmtune.index.query.filters import And, ColumnPath, Compare, Filter, In, IsNull, Not, Or, value_kind

KIND_NAMES = {"s": "strings", "n": "numbers", "b": "booleans", "j": "lists or mappings"}


def check_columns(where: Filter, columns: Mapping[str, set[str]]) -> None:
    """Raises DataError when a comparison in the filter cannot be true for any item.

    That is the case when no item has its column, or when the column has only values of other kinds. `COLUMN is null` may name
    a column that no item has, unless the name is similar to that of an existing column and thus probably misspelt.

    columns: {top-level column: kinds of its values, see `value_kind`}.
    """
    for path, kinds in _comparisons(where):
        name = ".".join(path)
        known = columns.get(path[0])
        if known is None:
            near = difflib.get_close_matches(path[0], columns, 1)
            if not near and not kinds:
                continue
            hint = f"did you mean {near[0]!r}?" if near else f"existing columns: {', '.join(sorted(columns)) or 'none'}"
            raise DataError(f"filter: no item has a column {path[0]!r}; {hint}")
        if len(path) == 1 and kinds and known and not kinds & known:
            held = " and ".join(KIND_NAMES[k] for k in sorted(known))
            compared = " or ".join(KIND_NAMES[k] for k in sorted(kinds))
            raise DataError(f"filter: {name} holds {held}, and is compared with {compared}{_advice(name, kinds, known)}")


def _advice(name: str, kinds: set[str], known: set[str]) -> str:
    if known == {"s"} and kinds == {"n"}:
        return (
            f"; write the value in single quotes, or, where {name} is meant to be numbers, give every row a plain number "
            "(no unit, no leading zero) and pack and index the rows again"
        )
    return "; write the value without quotes" if known == {"n"} and kinds == {"s"} else ""


def _comparisons(where: Filter) -> Iterator[tuple[ColumnPath, set[str]]]:
    """Yield (column path, kinds of the values it is compared with) for every comparison; an empty set for `is null`."""
    match where:
        case And(terms) | Or(terms):
            for term in terms:
                yield from _comparisons(term)
        case Not(term):
            yield from _comparisons(term)
        case Compare(path, _, value):
            yield path, {str(value_kind(value))}
        case In(path, values):
            yield path, {str(value_kind(v)) for v in values}
        case IsNull(path):
            yield path, set()
