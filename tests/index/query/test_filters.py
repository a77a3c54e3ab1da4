"""Filters: what they mean, what they refuse, and the same meaning as plain Python."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.errors import DataError
from mmtune.index.query.filter_columns import check_columns
from mmtune.index.query.filters import And, Compare, In, IsNull, Not, Or, parse, value_kind

APPLE = {
    "category": "Apple",
    "price": 2.5,
    "organic": True,
    "on sale": None,
    "from": {"country": "PL", "km": 900},
    "tags": ["a"],
}


@pytest.mark.parametrize(
    ("source", "admitted"),
    [
        ("category = 'Apple'", True),
        ("category = 'apple'", False),
        ("category != 'Pear' and price < 3", True),
        ("price >= 2.5 and price <= 2.5 and price > -1e3", True),
        ("category = 'Pear' or price = 2.5 and organic = true", True),
        ("(category = 'Pear' or price = 2.5) and organic = false", False),
        ("not category = 'Pear'", True),
        ("NOT (Category = 'Apple')", True),
        ("category IN ('Pear', 'Apple', 3)", True),
        ("category not in ('Pear', 'Apple')", False),
        ("weight is null and price IS NOT NULL", True),
        ('"on sale" is null', True),
        ("weight = 3", False),
        ("weight != 3", False),
        ("not weight = 3", True),
        ("weight not in (3)", False),
        ("from.country = 'PL' and from.km < 1000", True),
        ("from.\"country\" > 'PA'", True),
        ('"from.country" is null', True),
        ("from.country.code is null", True),
        ("price = '2.5'", False),
        ("price != '2.5'", True),
        ("category < 3", False),
        ("organic = 1", False),
        ("tags = 'a'", False),
        ("tags is not null and from is not null", True),
        ("category = 'It''s'", False),
    ],
)
def test_what_a_filter_means(source, admitted):
    assert parse(source).matches(APPLE) is admitted


def test_the_tree_and_its_columns():
    tree = parse("a.b = 'x' and (c < 3 or not d is null) and e != true")
    assert tree == And(
        (
            In(("a", "b"), ("x",)),
            Or((Compare(("c",), "<", 3.0), Not(IsNull(("d",))))),
            And((Not(IsNull(("e",))), Not(In(("e",), (True,))))),
        )
    )
    assert tree.columns() == {("a", "b"), ("c",), ("d",), ("e",)}


@pytest.mark.parametrize(
    ("source", "position", "says"),
    [
        ("", 1, "needs a comparison"),
        ("  ", 3, "needs a comparison"),
        ("category = ", 12, "expected a number"),
        ("category Apple", 10, "expected = !="),
        ('category = "Apple"', 12, "single quotes"),
        ("category = 'Apple", 12, "not closed"),
        ("price < 3 price", 11, "expected and, or"),
        ("(price < 3", 11, "expected )"),
        ("price = null", 9, "is null"),
        ("price is 3", 10, "expected null"),
        ("organic < true", 11, "no order"),
        ("a = 1; drop table x", 6, "unexpected character"),
        ("a in ()", 7, "expected a number"),
        ("a in (1,)", 9, "expected a number"),
        ("a = 1e999", 5, "float64"),
        ("and = 1", 1, "double quotes"),
        ("a = 1 -- comment", 7, "unexpected character"),
        ("a = 5x", 5, "unexpected character"),
        ("(" * 21 + "a = 1" + ")" * 21, 21, "deep"),
        ("not " * 100_000, None, "at most"),
    ],
)
def test_bad_syntax_is_one_line_with_the_position(source, position, says):
    with pytest.raises(DataError) as caught:
        parse(source)
    line = str(caught.value)
    assert says in line and "\n" not in line and len(line) < 250
    assert position is None or f"position {position}," in line


def test_newlines_in_a_filter_do_not_break_the_line():
    with pytest.raises(DataError) as caught:
        parse("a = 1 b\nc")
    assert "before 'b\\nc'" in str(caught.value) and "\n" not in str(caught.value)


def test_what_utf8_or_a_database_cannot_hold_is_refused():
    for source in ("a = '\0'", "a = '\ud800'"):
        with pytest.raises(DataError, match="NUL"):
            parse(source)


def test_nan_and_infinity_count_as_missing():
    assert parse("a is null").matches({"a": float("nan")}) and parse("a is null").matches({"a": float("inf")})
    assert not parse("a > 0").matches({"a": float("inf")})


def test_numbers_compare_as_float64():
    assert parse("a = 9007199254740993").matches({"a": 9007199254740992}) and parse("a = 3").matches({"a": 3.0})


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_random_tree_reads_back_and_means_what_python_means(rng: random.Random):
    source, python = sentence(rng, 3)
    tree = parse(source)
    for _ in range(10):
        meta = {c: v for c in "abc" if (v := rng.choice([None, 1, 2, 2.5, "x", "y'z", True, [1]])) is not None}
        assert tree.matches(meta) is python(meta), (source, meta)


def sentence(rng: random.Random, depth: int):
    """(a filter, the same as a Python function), written without looking at the parser."""
    if depth and rng.random() < 0.6:
        if rng.random() < 0.3:
            source, f = sentence(rng, depth - 1)
            return f"not ({source})", lambda m: not f(m)
        word, join = rng.choice([("and", all), ("or", any)])
        parts = [sentence(rng, depth - 1) for _ in range(rng.randint(2, 3))]
        return f" {word} ".join(f"({s})" for s, _ in parts), lambda m: join(f(m) for _, f in parts)
    column, value = rng.choice("abc"), rng.choice([1, 2, 2.5, "x", "y'z"])
    written = str(value) if not isinstance(value, str) else "'" + value.replace("'", "''") + "'"
    op = rng.choice(["=", "!=", "<", ">=", "is null"])
    if op == "is null":
        return f"{column} is null", lambda m: m.get(column) is None

    def compare(m):
        v = m.get(column)
        if v is None:
            return False
        same = value_kind(v) == value_kind(value)
        tests = {"=": lambda: same and v == value, "!=": lambda: not (same and v == value)}
        return bool((tests | {"<": lambda: same and v < value, ">=": lambda: same and v >= value})[op]())

    return f"{column} {op} {written}", compare


COLUMNS = {"category": {"s"}, "price": {"s"}, "stock": {"n"}, "from": {"j"}, "group": {"s"}}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("categry = 'Apple'", "no item has a column 'categry'; did you mean 'category'?"),
        ("zzz = 1", "no item has a column 'zzz'; existing columns: category, from, group, price, stock"),
        ("category = 'Apple' and (prise < 3 or stock > 1)", "did you mean 'price'?"),
        ("price < 3", "price holds strings, and is compared with numbers; write the value in single quotes"),
        ("stock = '3'", "stock holds numbers, and is compared with strings"),
        ("categry != 'Apple'", "did you mean 'category'?"),
        ("fron.country = 'PL'", "did you mean 'from'?"),
        ("not prise = 3", "did you mean 'price'?"),
        ("prise is null", "did you mean 'price'?"),
        ("category = 'Apple' or prise = '3'", "did you mean 'price'?"),
        ("price != 3", "price holds strings, and is compared with numbers"),
    ],
)
def test_a_filter_that_does_not_fit_the_columns_is_refused(source, says):
    with pytest.raises(DataError) as caught:
        check_columns(parse(source), COLUMNS)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    ["category = 'none'", "price < '3'", "stock in (1, 'x')", "weight is null", "from.x.y = 1", "not price is null"],
)
def test_a_filter_that_could_admit_something_is_not_an_error(source):
    check_columns(parse(source), COLUMNS)
