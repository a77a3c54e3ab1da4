"""Points and filters of Qdrant, for the client and for the engine in this process.

The payload of a point is {"id", "meta": the whole metadata as JSON, "f": {column: value}}. The columns are typed
(`store_rows.typed_column`), so that a filter has the same meaning as in other stores.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from mmtune.errors import DataError
from mmtune.index.query.filters import And, Compare, Filter, In, IsNull, Not, Or, value_kind
from mmtune.index.stores import store_rows

F = TypeVar("F")
"""The filter class of a Qdrant package."""
NAMESPACE = uuid.UUID("6a1bd5a2-58f1-5d9e-b7c5-0c64a9a1f0de")
"""Namespace of the UUIDs that are made from item ids, because Qdrant allows only UUIDs and integers as point ids."""
MAX_INDEXED_LENGTH = 64
"""A payload index is created for a column whose first value has at most this many characters: categories, not prose."""
COLUMN_TYPES = {"n": "float", "s": "keyword", "b": "bool"}
"""Kind of a metadata value (`filters.value_kind`): the type of Qdrant's payload index."""


def point_id(id: str) -> str:
    """Return the id of an item's point."""
    return str(uuid.uuid5(NAMESPACE, id))


def payload(id: str, meta: Mapping[str, object], values: Mapping[str, object]) -> dict[str, object]:
    """Return the payload of an item's point. values: its typed columns."""
    return {"id": id, "meta": store_rows.document(meta), "f": values}


class FilterModels(NamedTuple, Generic[F]):
    """How a Qdrant package spells its conditions; keyword arguments are those that both packages have in common."""

    filter: Callable[..., F]
    field: Callable[..., object]
    range: Callable[..., object]
    match_value: Callable[[object], object]
    match_any: Callable[[list[str]], object]
    is_empty: Callable[[str], object]


def condition(f: Filter, m: FilterModels[F]) -> F:
    """Translate a filter to a Qdrant filter.

    Raises DataError for < <= > >= on strings, which Qdrant does not support.
    """
    match f:
        case Not(term):
            return m.filter(must_not=[condition(term, m)])
        case And(terms):
            return m.filter(must=[condition(t, m) for t in terms])
        case Or(terms):
            return m.filter(should=[condition(t, m) for t in terms])
        case IsNull(path):
            return m.filter(must=[m.is_empty(f"f.{store_rows.typed_column(k, path)}") for k in "nsbj"])
        case Compare(path, op, value):
            if isinstance(value, str):
                raise DataError(
                    f"filter: Qdrant orders numbers only, not strings: {'.'.join(path)} {op} {value[:40]!r}; use = or in"
                )
            bound = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}[op]
            test = m.field(key=f"f.{store_rows.typed_column('n', path)}", range=m.range(**{bound: float(value)}))
            return m.filter(must=[test])
        case In(path, values):
            number, boolean, string = (f"f.{store_rows.typed_column(k, path)}" for k in "nbs")
            tests = [m.field(key=number, range=m.range(gte=v, lte=v)) for v in map(_number, values) if v is not None]
            tests += [m.field(key=boolean, match=m.match_value(v)) for v in values if value_kind(v) == "b"]
            strings = [v for v in values if isinstance(v, str)]
            if strings:
                tests.append(m.field(key=string, match=m.match_any(strings)))
            return m.filter(should=tests)
    raise TypeError(type(f))


def _number(value: object) -> float | None:
    return float(value) if value_kind(value) == "n" and isinstance(value, int | float) else None


def indexed_columns(values: Mapping[str, object], known: Iterable[str]) -> dict[str, str]:
    """Return {column: type of its payload index} for the columns of a point that are not `known` and have short values."""
    new = {c: v for c, v in values.items() if c not in known}
    return {c: COLUMN_TYPES[c[0]] for c, v in new.items() if c[0] in COLUMN_TYPES and len(str(v)) <= MAX_INDEXED_LENGTH}
