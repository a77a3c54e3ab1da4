"""Facets: counts of metadata values, by SQL, against counts by hand; and the filters that chosen values become."""

import pytest

from mmtune.contracts import Row
from mmtune.errors import DataError
from mmtune.index.item_catalog import Catalog
from mmtune.index.query import facets as facets_module
from mmtune.index.query.facets import FacetCache, count_facets, facet_filter
from mmtune.index.query.filters import parse


@pytest.fixture
def catalog(tmp_path):
    made = Catalog(tmp_path)
    rows = [
        Row(
            f"r{n}",
            "even" if n % 2 == 0 else None,
            {"text": f"row {n}".encode()},
            {
                "colour": ["red", "blue", "it's"][n % 3],
                "price": n / 2 if n % 2 else n,
                "sale": n < 4,
                "sizes": [1, 2],
                "name": f"unique {n}",
                "order": 7 if n < 5 else "7",
                "nothing": None,
            },
        )
        for n in range(12)
    ]
    made.upsert_rows(rows)
    yield made
    made.close()


def test_counts_kinds_and_ranges(catalog):
    found = count_facets(catalog, max_values=11)
    columns = {c.name: c for c in found.columns}
    assert (found.counted, found.items) == (12, 12)
    assert {name: c.kinds for name, c in columns.items()} == {
        "group": ["string"],
        "colour": ["string"],
        "price": ["number"],
        "sale": ["true or false"],
        "sizes": ["list or object"],
        "name": ["string"],
        "order": ["number", "string"],
    }
    assert [(v.value, v.count) for v in columns["colour"].values] == [("blue", 4), ("it's", 4), ("red", 4)]
    assert [(v.value, v.count) for v in columns["sale"].values] == [(False, 8), (True, 4)]
    assert {(v.value, v.count, v.key) for v in columns["order"].values} == {(7, 5, "7"), ("7", 7, '"7"')}
    assert [(v.value, v.count) for v in columns["group"].values] == [("even", 6)]
    assert columns["price"].range == (0, 10) and columns["name"].values == [] == columns["sizes"].values
    assert {c.name for c in found.choices} == {"colour", "sale", "order"}  # a group alone is no choice
    for column in found.columns:  # what the page offers as an example is a filter that can be parsed
        if column.example:
            parse(f"{column.source} = {column.example}")


def test_of_a_large_collection_the_first_items_are_counted(catalog):
    found = count_facets(catalog, max_items=3)
    assert (found.counted, found.items) == (3, 12)
    assert sum(v.count for v in next(c for c in found.columns if c.name == "colour").values) == 3


def test_chosen_values_are_a_filter():
    chosen = {"colour": ['"red"', '"it\'s"'], "on sale": ["true"], "price": ["3", "0.5"], 'a"b': ['"x"']}
    condition = facet_filter(chosen, "size > 2 or size < 1")
    tree = parse(condition)
    right = {"colour": "it's", "on sale": True, "price": 3, 'a"b': "x", "size": 3}
    assert tree.matches(right)
    for change in ({"colour": "blue"}, {"on sale": "true"}, {"price": "3"}, {'a"b': "y"}, {"size": 2}):
        assert not tree.matches({**right, **change}), change
    assert facet_filter({}, " ") == "" and facet_filter({}, "a = 1") == "a = 1"
    for bad in ("red", "[1]", "null", '{"a": 1}'):
        with pytest.raises(DataError, match="colour"):
            facet_filter({"colour": [bad]})


def test_counts_are_renewed_after_a_change_but_not_at_once(catalog, monkeypatch):
    cache = FacetCache(catalog)
    assert cache.get().items == 12 and cache.get() is cache.get()
    catalog.delete(["r0"])
    assert cache.get().items == 12
    monkeypatch.setattr(facets_module, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(facets_module, "COST_FACTOR", 0.0)
    fresh = FacetCache(catalog)
    assert fresh.get().items == 11
    catalog.delete(["r1"])
    assert fresh.get().items == 10
