"""Why a filter admits nothing: a misspelt column, or a number compared with strings.

A filter on a column that no item has is legal (`weight is null`), so this is asked only after a search returned nothing.
"""

import difflib
from collections.abc import Iterator, Mapping

from mmtune.errors import DataError
from mmtune.index.query.filters import And, Compare, Filter, In, IsNull, Not, Or, value_kind

KIND_NAMES = {"s": "strings", "n": "numbers", "b": "booleans", "j": "lists or mappings"}


def explain_empty(where: Filter, columns: Mapping[str, set[str]]) -> None:
    """DataError when a comparison of `where` can hold for no item: its column does not exist, or has values of other kinds
    only.

    columns: {top-level column: kinds of its values, as of `value_kind`}.
    """
    for path, kinds in _comparisons(where):
        name = ".".join(path)
        known = columns.get(path[0])
        if known is None:
            near = difflib.get_close_matches(path[0], columns, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(columns)) or 'none'}"
            raise DataError(f"filter: no item has a column {path[0]!r}; {hint}")
        if len(path) == 1 and not kinds & known:
            held = " and ".join(KIND_NAMES[k] for k in sorted(known))
            compared = " or ".join(KIND_NAMES[k] for k in sorted(kinds))
            hint = "; write the value in single quotes" if known == {"s"} and kinds == {"n"} else ""
            raise DataError(f"filter: {name} holds {held}, and is compared with {compared}{hint}")


def _comparisons(where: Filter) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """(path, kinds of the values it is compared with) of every comparison that needs a value to be present."""
    match where:
        case And(terms) | Or(terms):
            for term in terms:
                yield from _comparisons(term)
        case Compare(path, _, value):
            yield path, {str(value_kind(value))}
        case In(path, values):
            yield path, {str(value_kind(v)) for v in values}
        case Not(IsNull(path)):  # of `is not null`, `!=` and `not in`
            yield path, {"s", "n", "b", "j"}
