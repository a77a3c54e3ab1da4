"""Parse and evaluate filters over metadata: `category = 'Apple' and (price < 3 or "on sale" = true) and not origin is null`.

Syntax:
    column      a metadata key; `a.b` is key b of the object under key a. Names that are not plain words are written in double
                quotes.
    value       a string in single quotes ('' is a quote inside it), a number, true or false
    operators   = != < <= > >=, in (...), not in (...), is null, is not null, and, or, not, parentheses
    Keywords may be written in upper or lower case.

A filter has the same meaning in every store. Every comparison is true or false. A comparison with a missing value is false,
also with `!=` and `not in`; `not` applied to it is true. Numbers are compared as float64, and strings by code point; a number
never equals a string. A list or an object is not null, but equals no value. NaN and infinity count as missing.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from mmtune.errors import DataError

ColumnPath = tuple[str, ...]
"""The keys that lead to a value in nested metadata."""
Value = str | float | bool
ValueKind = Literal["s", "n", "b", "j"]
"""s: string, n: number, b: boolean, j: a list or an object, which only `is null` and `is not null` can test."""

MAX_LENGTH, MAX_DEPTH = 20_000, 20
"""Limits on the characters of a filter, and on the nesting of parentheses and `not`: filters may come from untrusted users."""

NUMBER_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
STRING_ORDER: dict[str, Callable[[str, str], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def value_kind(value: object) -> ValueKind | None:
    """Return the kind of a metadata value, which decides what it can be compared with; None when it counts as missing."""
    if isinstance(value, bool):
        return "b"
    if isinstance(value, str):
        return "s"
    if isinstance(value, int | float):
        return "n" if math.isfinite(value) else None
    return None if value is None else "j"


def lookup(meta: Mapping[str, object], path: ColumnPath) -> object:
    """Return the value at a path of keys; None when a key is missing, or when the parent of a key is not an object."""
    value: object = meta
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


class Filter:
    """Base class of the nodes of a parsed filter. The subclasses are In, Compare, IsNull, Not, And and Or; every store
    translates these six to its own query language."""

    def matches(self, meta: Mapping[str, object]) -> bool:
        """Whether an item with this metadata matches the filter."""
        raise NotImplementedError

    def columns(self) -> set[ColumnPath]:
        """Return all columns that the filter uses."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class In(Filter):
    """True when the column's value equals one of `values` (at least one, of any kinds)."""

    path: ColumnPath
    values: tuple[Value, ...]

    def matches(self, meta: Mapping[str, object]) -> bool:
        value = lookup(meta, self.path)
        kind = value_kind(value)
        if kind == "n" and isinstance(value, int | float):
            value = float(value)
        return any(value_kind(v) == kind and v == value for v in self.values)

    def columns(self) -> set[ColumnPath]:
        return {self.path}


@dataclass(frozen=True, slots=True)
class Compare(Filter):
    """True when the column's value is of the same kind as `value` (string or number), and `op` holds: < <= > or >=."""

    path: ColumnPath
    op: str
    value: str | float

    def matches(self, meta: Mapping[str, object]) -> bool:
        value = lookup(meta, self.path)
        if isinstance(value, str) and isinstance(self.value, str):
            return STRING_ORDER[self.op](value, self.value)
        if value_kind(value) != "n" or isinstance(self.value, str) or not isinstance(value, int | float):
            return False
        return NUMBER_ORDER[self.op](float(value), self.value)

    def columns(self) -> set[ColumnPath]:
        return {self.path}


@dataclass(frozen=True, slots=True)
class IsNull(Filter):
    """True when the column's value is missing, null, NaN or infinite."""

    path: ColumnPath

    def matches(self, meta: Mapping[str, object]) -> bool:
        return value_kind(lookup(meta, self.path)) is None

    def columns(self) -> set[ColumnPath]:
        return {self.path}


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """True when the term is false."""

    term: Filter

    def matches(self, meta: Mapping[str, object]) -> bool:
        return not self.term.matches(meta)

    def columns(self) -> set[ColumnPath]:
        return self.term.columns()


@dataclass(frozen=True, slots=True)
class And(Filter):
    """True when all terms (two or more) are true."""

    terms: tuple[Filter, ...]

    def matches(self, meta: Mapping[str, object]) -> bool:
        return all(t.matches(meta) for t in self.terms)

    def columns(self) -> set[ColumnPath]:
        return set().union(*(t.columns() for t in self.terms))


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """True when at least one of the terms (two or more) is true."""

    terms: tuple[Filter, ...]

    def matches(self, meta: Mapping[str, object]) -> bool:
        return any(t.matches(meta) for t in self.terms)

    def columns(self) -> set[ColumnPath]:
        return set().union(*(t.columns() for t in self.terms))


def present_and_not(path: ColumnPath, term: Filter) -> Filter:
    """Return the filter for `!=` and `not in`: the column has a value, and `term` is false."""
    return And((Not(IsNull(path)), Not(term)))


def parse(source: str) -> Filter:
    """Parse a filter. Raises DataError, in one line and with the position of the error, when the syntax is invalid."""
    return _Parser(source).parse()


TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))|(?P<word>[^\W\d]\w*)|(?P<quoted>"(?:[^"]|"")*")
    |(?P<value>'(?:[^']|'')*')|(?P<sign><=|>=|!=|[=<>(),.])|(?P<end>$))""",
    re.VERBOSE,
)
KEYWORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}
Token = tuple[str, str, int]
"""(type, characters, position in the source). The type is a group name of TOKEN, or "keyword"."""


def tokenize(source: str) -> list[Token]:
    """Split a filter into tokens; the last one has type "end". Raises DataError for characters that start no token."""
    tokens: list[Token] = []
    position = 0
    while not tokens or tokens[-1][0] != "end":
        match = TOKEN.match(source, position)
        if match is None or match.lastgroup is None:
            position += len(source[position:]) - len(source[position:].lstrip())
            quote = source[position] in "'\""
            fail(source, position, "this quote is not closed" if quote else f"unexpected character {source[position]!r}")
        kind, characters = match.lastgroup, match[match.lastgroup]
        if kind == "word" and characters.lower() in KEYWORDS:
            kind, characters = "keyword", characters.lower()
        tokens.append((kind, characters, match.start(match.lastgroup)))
        position = match.end()
    return tokens


def fail(source: str, position: int, why: str) -> NoReturn:
    """Raises DataError in one line: the position, the text of the filter after the position, and what is wrong."""
    rest = source[position : position + 40]
    near = f"before {rest!r}" if rest else "at its end"
    raise DataError(f"filter: position {position + 1}, {near}: {why}")


class _Parser:
    """A recursive-descent parser."""

    def __init__(self, source: str):
        if len(source) > MAX_LENGTH:
            raise DataError(f"filter: {len(source)} characters; at most {MAX_LENGTH} are allowed")
        if "\0" in source or not encodable(source):
            raise DataError("filter: contains a NUL character or an unpaired surrogate; remove it")
        self.source, self.at, self.depth = source, 0, 0
        self.tokens = tokenize(source)

    def fail(self, why: str, position: int | None = None) -> NoReturn:
        """Raises DataError for the current token, or for `position`."""
        fail(self.source, self.tokens[self.at][2] if position is None else position, why)

    def take(self, *expected: str) -> str | None:
        """Consume and return the next keyword or sign if it is one of `expected`; otherwise return None."""
        kind, characters, _ = self.tokens[self.at]
        if kind in ("keyword", "sign") and characters in expected:
            self.at += 1
            return characters
        return None

    def require(self, expected: str) -> None:
        """Consume that keyword or sign. Raises DataError when the next token is another one."""
        if not self.take(expected):
            self.fail(f"expected {expected}")

    def parse(self) -> Filter:
        """Parse the whole source."""
        if self.tokens[0][0] == "end":
            self.fail("a filter needs a comparison, e.g. category = 'Apple'")
        tree = self.disjunction()
        if self.tokens[self.at][0] != "end":
            self.fail("expected and, or, or the end")
        return tree

    def disjunction(self) -> Filter:
        """Parse `conjunction or conjunction ...`."""
        terms = [self.conjunction()]
        while self.take("or"):
            terms.append(self.conjunction())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def conjunction(self) -> Filter:
        """Parse `term and term ...`."""
        terms = [self.term()]
        while self.take("and"):
            terms.append(self.term())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def term(self) -> Filter:
        """Parse `not term`, a disjunction in parentheses, or a comparison."""
        opening = self.take("not", "(")
        if opening is None:
            return self.comparison()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.at -= 1
            self.fail(f"parentheses and `not` are nested more than {MAX_DEPTH} deep")
        tree: Filter = Not(self.term()) if opening == "not" else self.disjunction()
        if opening == "(":
            self.require(")")
        self.depth -= 1
        return tree

    def comparison(self) -> Filter:
        """Parse a column, an operator, and one or several values."""
        path = self.column()
        if self.take("is"):
            absent = self.take("not") is None
            self.require("null")
            return IsNull(path) if absent else Not(IsNull(path))
        if self.take("in"):
            return In(path, self.value_list())
        if self.take("not"):
            self.require("in")
            return present_and_not(path, In(path, self.value_list()))
        op = self.take("=", "!=", *NUMBER_ORDER)
        if op is None:
            self.fail("expected = != < <= > >=, in, not in, or is null")
        at = self.at
        value = self.value()
        if op not in NUMBER_ORDER:
            equal = In(path, (value,))
            return equal if op == "=" else present_and_not(path, equal)
        if isinstance(value, bool):
            self.fail(f"true and false have no order: {op} compares numbers or strings", self.tokens[at][2])
        return Compare(path, op, value)

    def column(self) -> ColumnPath:
        """Parse a column: one name, or several names joined by dots."""
        parts: list[str] = []
        while not parts or self.take("."):
            kind, name, _ = self.tokens[self.at]
            if kind == "quoted":
                name = name[1:-1].replace('""', '"')
            elif kind != "word" and not (kind == "keyword" and parts):
                self.fail("expected a column; put a name that is a keyword or not a plain word in double quotes")
            parts.append(name)
            self.at += 1
        return tuple(parts)

    def value_list(self) -> tuple[Value, ...]:
        """Parse `(value, value, ...)`."""
        self.require("(")
        values = [self.value()]
        while self.take(","):
            values.append(self.value())
        self.require(")")
        return tuple(values)

    def value(self) -> Value:
        """Parse a string, a number, true or false."""
        kind, characters, _ = self.tokens[self.at]
        if kind == "value":
            self.at += 1
            return characters[1:-1].replace("''", "'")
        if kind == "number":
            if not math.isfinite(float(characters)):
                self.fail("the number is too large for float64")
            self.at += 1
            return float(characters)
        if self.take("true"):
            return True
        if self.take("false"):
            return False
        if self.take("null"):
            self.fail("comparisons with null are always false; write: is null", self.tokens[self.at - 1][2])
        self.fail("expected a number, true, false, or a string in single quotes")


def encodable(string: str) -> bool:
    """Whether a string can be encoded as UTF-8. A string from JSON may contain an unpaired surrogate, which cannot."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True
