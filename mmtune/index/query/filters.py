"""Filters over items' metadata: `category = 'Apple' and (price < 3 or "on sale" = true) and not origin is null`.

A column is a key of the metadata, `a.b` is key b of the mapping under key a; names that are not words stand in double
quotes, values are 'words in single quotes' ('' is a quote), numbers, true or false. Operators: = != < <= > >=, in (...),
not in (...), is null, is not null, and, or, not, brackets; keywords in any case.

Meaning, the same in every store: there are two truth values. A comparison with a missing value is false (`!=` and `not in`
too), `not` of it true. Numbers compare as float64, words by code point, never one with the other. A list or a mapping is
not null, and equals nothing. NaN and infinity count as missing.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from mmtune.errors import DataError

Path = tuple[str, ...]
Value = str | float | bool
Kind = Literal["s", "n", "b", "j"]
"""Words, number, switch, or a list or mapping, which only `is null` sees."""

LONGEST, DEEPEST = 20_000, 20
"""Characters of a filter, and brackets and `not` within each other: a filter comes from strangers."""

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def kind(value: Any) -> Kind | None:
    """What a metadata value compares as; None when it counts as missing."""
    if isinstance(value, bool):
        return "b"
    if isinstance(value, str):
        return "s"
    if isinstance(value, int | float):
        return "n" if math.isfinite(value) else None
    return None if value is None else "j"


def lookup(meta: Mapping[str, Any], path: Path) -> Any:
    """The value at a path of keys; None where a key is missing or its holder is no mapping."""
    value: Any = meta
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


class Filter:
    """A node of the tree that `parse` makes. Stores translate its six kinds; nothing else exists."""

    def matches(self, meta: Mapping[str, Any]) -> bool:
        """Whether an item with this metadata is admitted."""
        raise NotImplementedError

    def columns(self) -> set[Path]:
        """Every column it looks at."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class In(Filter):
    """The value equals one of `values` (one or more, of any kinds)."""

    path: Path
    values: tuple[Value, ...]

    def matches(self, meta: Mapping[str, Any]) -> bool:
        value = lookup(meta, self.path)
        of = kind(value)
        value = float(value) if of == "n" else value
        return any(kind(v) == of and v == value for v in self.values)

    def columns(self) -> set[Path]:
        return {self.path}


@dataclass(frozen=True, slots=True)
class Order(Filter):
    """The value is of the same kind (words or a number) and stands before or after `value`; `op` is a key of ORDER."""

    path: Path
    op: str
    value: str | float

    def matches(self, meta: Mapping[str, Any]) -> bool:
        value = lookup(meta, self.path)
        if kind(value) != kind(self.value):
            return False
        return ORDER[self.op](float(value) if not isinstance(value, str) else value, self.value)

    def columns(self) -> set[Path]:
        return {self.path}


@dataclass(frozen=True, slots=True)
class IsNull(Filter):
    """The value is missing, null, or not a finite number."""

    path: Path

    def matches(self, meta: Mapping[str, Any]) -> bool:
        return kind(lookup(meta, self.path)) is None

    def columns(self) -> set[Path]:
        return {self.path}


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The term does not hold."""

    term: Filter

    def matches(self, meta: Mapping[str, Any]) -> bool:
        return not self.term.matches(meta)

    def columns(self) -> set[Path]:
        return self.term.columns()


@dataclass(frozen=True, slots=True)
class All(Filter):
    """Every term holds (two or more)."""

    terms: tuple[Filter, ...]

    def matches(self, meta: Mapping[str, Any]) -> bool:
        return all(t.matches(meta) for t in self.terms)

    def columns(self) -> set[Path]:
        return set().union(*(t.columns() for t in self.terms))


@dataclass(frozen=True, slots=True)
class AnyOf(Filter):
    """One term holds (of two or more)."""

    terms: tuple[Filter, ...]

    def matches(self, meta: Mapping[str, Any]) -> bool:
        return any(t.matches(meta) for t in self.terms)

    def columns(self) -> set[Path]:
        return set().union(*(t.columns() for t in self.terms))


def present(path: Path, term: Filter) -> Filter:
    """`!=` and `not in`: a value is there, and `term` does not hold for it."""
    return All((Not(IsNull(path)), Not(term)))


def parse(source: str) -> Filter:
    """The tree of a filter. DataError in one line, with the position, for anything that is not one."""
    return _Parser(source).filter()


TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))|(?P<word>[^\W\d]\w*)|(?P<quoted>"(?:[^"]|"")*")
    |(?P<value>'(?:[^']|'')*')|(?P<sign><=|>=|!=|[=<>(),.])|(?P<end>$))""",
    re.VERBOSE,
)
KEYWORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}


class _Parser:
    """Recursive descent over tokens (type, characters, position)."""

    def __init__(self, source: str):
        self.source, self.at, self.depth = source, 0, 0
        self.tokens: list[tuple[str, str, int]] = []
        if len(source) > LONGEST:
            raise DataError(f"filter: {len(source)} characters; at most {LONGEST} are read")
        if "\0" in source or not encodable(source):
            raise DataError("filter: holds a NUL character or half a surrogate pair")
        at = 0
        while not self.tokens or self.tokens[-1][0] != "end":
            found = TOKEN.match(source, at)
            if found is None or found.lastgroup is None:
                at += len(source[at:]) - len(source[at:].lstrip())
                quote = source[at] in "'\""
                self.fail("this quote is not closed" if quote else f"{source[at]!r} has no meaning here", at)
            kind_, word = found.lastgroup, found[found.lastgroup]
            if kind_ == "word" and word.lower() in KEYWORDS:
                kind_, word = "keyword", word.lower()
            self.tokens.append((kind_, word, found.start(found.lastgroup)))
            at = found.end()

    def fail(self, why: str, at: int | None = None) -> NoReturn:
        """One line: what, where, and the filter from there on."""
        at = self.tokens[self.at][2] if at is None else at
        rest = self.source[at : at + 40]
        near = f"before {rest!r}" if rest else "at its end"
        raise DataError(f"filter: position {at + 1}, {near}: {why}")

    def take(self, *words: str) -> str | None:
        """The next keyword or sign, if it is one of `words`."""
        of, word, _ = self.tokens[self.at]
        if of in ("keyword", "sign") and word in words:
            self.at += 1
            return word
        return None

    def need(self, word: str) -> None:
        if not self.take(word):
            self.fail(f"expected {word}")

    def filter(self) -> Filter:
        if self.tokens[0][0] == "end":
            self.fail("a filter needs a comparison, e.g. category = 'Apple'")
        tree = self.either()
        if self.tokens[self.at][0] != "end":
            self.fail("expected and, or, or the end")
        return tree

    def either(self) -> Filter:
        terms = [self.both()]
        while self.take("or"):
            terms.append(self.both())
        return terms[0] if len(terms) == 1 else AnyOf(tuple(terms))

    def both(self) -> Filter:
        terms = [self.term()]
        while self.take("and"):
            terms.append(self.term())
        return terms[0] if len(terms) == 1 else All(tuple(terms))

    def term(self) -> Filter:
        opening = self.take("not", "(")
        if opening is None:
            return self.comparison()
        self.depth += 1
        if self.depth > DEEPEST:
            self.at -= 1
            self.fail(f"brackets and not more than {DEEPEST} deep")
        tree: Filter = Not(self.term()) if opening == "not" else self.either()
        if opening == "(":
            self.need(")")
        self.depth -= 1
        return tree

    def comparison(self) -> Filter:
        path = self.column()
        if self.take("is"):
            absent = self.take("not") is None
            self.need("null")
            return IsNull(path) if absent else Not(IsNull(path))
        if self.take("in"):
            return In(path, self.listed())
        if self.take("not"):
            self.need("in")
            return present(path, In(path, self.listed()))
        op = self.take("=", "!=", *ORDER)
        if op is None:
            self.fail("expected = != < <= > >=, in, not in, or is null")
        at = self.at
        value = self.value()
        if op not in ORDER:
            same = In(path, (value,))
            return same if op == "=" else present(path, same)
        if isinstance(value, bool):
            self.fail(f"true and false have no order: {op} compares numbers or words", self.tokens[at][2])
        return Order(path, op, value)

    def column(self) -> Path:
        parts: list[str] = []
        while not parts or self.take("."):
            of, word, _ = self.tokens[self.at]
            if of == "quoted":
                word = word[1:-1].replace('""', '"')
            elif of != "word" and not (of == "keyword" and parts):
                self.fail("expected a column; a name that is a keyword or no word stands in double quotes")
            parts.append(word)
            self.at += 1
        return tuple(parts)

    def listed(self) -> tuple[Value, ...]:
        self.need("(")
        values = [self.value()]
        while self.take(","):
            values.append(self.value())
        self.need(")")
        return tuple(values)

    def value(self) -> Value:
        of, word, _ = self.tokens[self.at]
        if of == "value":
            self.at += 1
            return word[1:-1].replace("''", "'")
        if of == "number":
            if not math.isfinite(float(word)):
                self.fail("a number beyond float64")
            self.at += 1
            return float(word)
        if self.take("true"):
            return True
        if self.take("false"):
            return False
        if self.take("null"):
            self.fail("nothing equals null; write: is null", self.tokens[self.at - 1][2])
        self.fail("expected a number, true, false, or words in single quotes")


def encodable(words: str) -> bool:
    """Whether it is Unicode that can be written down: JSON can hold halves of characters."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True
