"""Facets: what the metadata columns of a collection hold, and the most frequent values of those that have few different ones.

Everything is counted by SQLite, in C, so that a server can do it beside searches.
"""

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmtune.errors import DataError
from mmtune.index.item_catalog import Catalog
from mmtune.index.query.filters import KEYWORDS, Value

MAX_VALUES = 60
"""A column with more different values has no facet, only a line in the list of columns."""
MAX_ITEMS = 200_000
"""Items that are counted. Of a larger collection, the first ones stand for all."""
MIN_SECONDS, COST_FACTOR = 5.0, 50.0
"""Counts are renewed after this time at the earliest, and after this many times what counting took."""
KIND_NAMES = {"text": "string", "integer": "number", "real": "number", "true": "true or false", "false": "true or false"}
"""{SQLite's name of a JSON type: kind of a filter's value}; every other type can only be tested with `is null`."""
OTHER_KIND = "list or object"

ITEMS = "(select meta from items where deleted = 0 limit ?)"
COLUMNS = f"""select j.key, j.type, count(*), count(distinct j.atom), min(j.atom), max(j.atom)
    from {ITEMS} i, json_each(i.meta) j where j.type != 'null' group by j.key, j.type order by j.key"""
VALUES = f"""select j.type, j.atom, count(*) as n from {ITEMS} i, json_each(i.meta) j where j.key = ? and j.type != 'null'
    group by j.type, j.atom order by n desc, j.atom limit ?"""
GROUPS = """select 'text', grp, count(*) as n from (select grp from items where deleted = 0 limit ?) where grp is not null
    group by grp order by n desc, grp limit ?"""


@dataclass(frozen=True)
class FacetValue:
    """A value of a column, and the number of items that have it."""

    value: Value
    count: int

    @property
    def key(self) -> str:
        """The value as JSON, which tells the string '3' from the number 3."""
        return json.dumps(self.value, ensure_ascii=False)


@dataclass
class FacetColumn:
    """A metadata column.

    kinds: kinds of its values, e.g. ["string"]
    count: number of items that have a value
    values: its values, the most frequent ones first; empty for a column with more than MAX_VALUES different ones
    range: smallest and largest number, or None
    example: a value, as a filter writes it
    """

    name: str
    kinds: list[str] = field(default_factory=list)
    count: int = 0
    values: list[FacetValue] = field(default_factory=list)
    range: tuple[float, float] | None = None
    example: str = ""

    @property
    def source(self) -> str:
        """The column as a filter writes it."""
        return column_source(self.name)


@dataclass(frozen=True)
class Facets:
    """The columns of a collection. counted: number of items that were counted, `items` of them exist."""

    columns: list[FacetColumn]
    counted: int
    items: int

    @property
    def choices(self) -> list[FacetColumn]:
        """The columns with two or more values to choose from."""
        return [c for c in self.columns if len(c.values) > 1 and c.count > len(c.values)]


def count_facets(catalog: Catalog, max_items: int = MAX_ITEMS, max_values: int = MAX_VALUES) -> Facets:
    """Count the values of the catalog's metadata columns, and of its groups."""
    db, columns = catalog.connection(), dict[str, FacetColumn]()
    group_values = [FacetValue(v, n) for _, v, n in db.execute(GROUPS, (max_items, max_values + 1))]
    if group_values:
        few = group_values if len(group_values) <= max_values else []
        counted = sum(v.count for v in group_values)
        columns["group"] = FacetColumn("group", ["string"], counted, few, None, literal(group_values[0].value))
    for name, kind, count, distinct, low, high in db.execute(COLUMNS, (max_items,)):
        if name == "group":  # a filter's "group" is the item's group
            continue
        column = columns.setdefault(name, FacetColumn(name))
        known = KIND_NAMES.get(kind, OTHER_KIND)
        column.kinds += [known] if known not in column.kinds else []
        column.count += count
        if known == "number":
            column.range = (min(low, column.range[0]), max(high, column.range[1])) if column.range else (low, high)
        if known != OTHER_KIND:
            column.example = column.example or literal(_value(kind, low))
            if distinct <= max_values:
                column.values = [FacetValue(0, 0)]  # counted below
    for column in columns.values():
        if column.name != "group" and column.values:
            found = db.execute(VALUES, (max_items, column.name, max_values + 1)).fetchall()
            few = [FacetValue(_value(kind, value), n) for kind, value, n in found if kind in KIND_NAMES]
            column.values = few if len(found) <= max_values else []
    items = len(catalog)
    return Facets(list(columns.values()), min(items, max_items), items)


def _value(kind: str, atom: str | float) -> Value:
    """Convert a value of SQLite's json_each, where true and false are 1 and 0."""
    return bool(atom) if kind in ("true", "false") else atom


def column_source(name: str) -> str:
    """Write the name of a metadata column as filters do: in double quotes, unless it is a plain word."""
    plain = re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'


def literal(value: Value) -> str:
    """Write a value as filters do."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def facet_filter(chosen: Mapping[str, Sequence[str]], typed: str = "") -> str:
    """Return the filter for chosen values: any of the values of a column, in every column; and the condition `typed`, if there is one.

    chosen: {column: values as JSON (`FacetValue.key`)}. Raises DataError for a value that is no string, number, true or false.
    """
    terms = [f"({typed})"] if typed.strip() and chosen else [typed] if typed.strip() else []
    for column, keys in chosen.items():
        values = []
        for key in keys:
            try:
                value = json.loads(key)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, str | int | float | bool):
                raise DataError(
                    f"{column}: {key[:80]!r} is not a value to choose; values are JSON strings, numbers, true or false"
                )
            values.append(literal(value))
        terms.append(f"{column_source(column)} in ({', '.join(values)})")
    return " and ".join(terms)


class FacetCache:
    """The facets of a catalog, counted again when the catalog has changed, but not too often."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._guard = threading.Lock()
        self._facets: Facets | None = None
        self._seq, self._renew_at = -1, 0.0

    def get(self) -> Facets:
        """Return the facets; they may be as old as MIN_SECONDS, or COST_FACTOR times the time that counting takes."""
        with self._guard:
            seq, begin = self.catalog.seq, time.monotonic()
            if self._facets is None or (seq != self._seq and begin >= self._renew_at):
                self._facets, self._seq = count_facets(self.catalog), seq
                taken = time.monotonic() - begin
                self._renew_at = begin + taken + max(MIN_SECONDS, COST_FACTOR * taken)
            return self._facets
