"""Captions from attribute templates: `"{brand} {title}, {color}"`. A missing attribute leaves with the punctuation around it.

Syntax of a template:
    {name}        the attribute `name` of the item; names may contain spaces
    {name|other}  the first of several attributes that has a value
    {name!}       without this attribute the template gives no caption
    [ ... ]       an optional part: left out as a whole if one of its attributes is missing
    {{ }} [[ ]]   the characters themselves

Outside brackets, a template consists of clauses, divided by `,` `;` `:` `|` `/`, full stops, and dashes between spaces; what stands in
parentheses has clauses of its own.
    - A clause in which every attribute is missing is left out with its words, and so are parentheses. Each clause that stays keeps the
      separator before it.
    - Words directly before a missing attribute are left out if nothing follows them in the clause: "{title} by {brand}" without a brand
      is "boot", but "a {color} {title}" without a colour is "a boot".
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mmtune.errors import DataError

TOKEN = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{[^{}]*\}|[{}\[\]()]"  # characters themselves, attributes, brackets
    r"|\s[-\u2013\u2014]\s|[,;:|/]|\.(?=\s|$)"  # separators
    r"|\s+|[^{}\[\](),;:|/.\s]+|\."  # white space and words
)
SEPARATOR = re.compile(r"\s[-\u2013\u2014]\s|[,;:|/.]")
CLOSING = {"[": "]", "(": ")"}


@dataclass(frozen=True)
class _Field:
    """A place for an attribute. names: the attributes, of which the first with a value is used; required: see `{name!}`."""

    names: tuple[str, ...]
    required: bool

    def value(self, present: Mapping[str, str]) -> str:
        return next((present[name] for name in self.names if name in present), "")


@dataclass(frozen=True)
class _Separator:
    sign: str


@dataclass(frozen=True)
class _Enclosed:
    """A part in brackets, which are not written, or in parentheses, which are."""

    opening: str
    parts: "tuple[_Part, ...]"


_Part = str | _Field | _Separator | _Enclosed


class CaptionTemplate:
    """A parsed template.

    source: the template as it was written
    names: the attributes that it uses, in their order
    """

    def __init__(self, source: str):
        """Parse a template. Raises DataError, which shows it, for an unbalanced bracket or a template without an attribute."""
        self.source = source
        self._parts, _ = _parse(source, TOKEN.findall(source), "")
        self._fields = _fields(self._parts)
        self.names = list(dict.fromkeys(name for field in self._fields for name in field.names))
        if not self.names:
            raise DataError(f"caption template {source!r}: no attribute in it; write one as {{title}}")

    def check(self, columns: Collection[str], where: str) -> None:
        """Raise DataError, which suggests the nearest name, if an attribute is not among `columns` of the source `where`."""
        for name in self.names:
            if name not in columns:
                near = difflib.get_close_matches(name, columns, 1)
                hint = f"did you mean {{{near[0]}}}? " if near else ""
                raise DataError(f"{where}: no column {name!r} (--caption {self.source!r}); {hint}columns: {', '.join(columns)}")

    def fill(self, attributes: Mapping[str, str]) -> str | None:
        """The caption of an item, or None if all attributes of the template, or a required one, are missing.

        attributes: name -> value; an attribute is missing if it is not there or has only white space
        """
        present = {name: " ".join(value.split()) for name, value in attributes.items() if value and value.strip()}
        values = [(field.required, field.value(present)) for field in self._fields]
        if not any(value for _, value in values) or any(required and not value for required, value in values):
            return None
        caption = " ".join(_render(self._parts, present).split()).lstrip(",;:|/ ")
        return re.sub(r"\(\s+", "(", re.sub(r"\s+([,;:.)])", r"\1", caption)) or None


def _parse(source: str, tokens: list[str], opening: str) -> tuple[tuple[_Part, ...], list[str]]:
    """Parse up to the bracket that closes `opening`, or to the end. Returns the parts and the tokens that are left."""
    parts: list[_Part] = []
    while tokens:
        token, *tokens = tokens
        if token in ("{{", "}}", "[[", "]]"):
            parts.append(token[0])
        elif token in CLOSING:
            inner, tokens = _parse(source, tokens, token)
            parts.append(_Enclosed(token, inner))
        elif token == CLOSING.get(opening):
            return tuple(parts), tokens
        elif token[0] == "{" and (names := tuple(n.strip() for n in token[1:-1].rstrip("!").split("|") if n.strip())):
            parts.append(_Field(names, token.endswith("!}")))
        elif token[0] in "{}]":
            raise DataError(f"caption template {source!r}: a stray {token!r}; write {token[0] * 2!r} for the character itself")
        else:
            parts.append(_Separator(token) if SEPARATOR.fullmatch(token) else token)
    if opening:
        raise DataError(f"caption template {source!r}: {opening!r} is never closed")
    return tuple(parts), []


def _fields(parts: tuple[_Part, ...]) -> list[_Field]:
    """All attributes, also those within brackets."""
    found: list[_Field] = []
    for part in parts:
        found += [part] if isinstance(part, _Field) else _fields(part.parts) if isinstance(part, _Enclosed) else []
    return found


def _render(parts: tuple[_Part, ...], present: Mapping[str, str]) -> str:
    """Render parts clause by clause."""
    out, separator, clause = "", "", list[_Part]()
    for part in (*parts, _Separator("")):
        if not isinstance(part, _Separator):
            clause.append(part)
            continue
        if (rendered := _clause(clause, present)).strip():
            out += (separator if out.strip() else "") + (rendered if out.strip() else rendered.lstrip())
        separator, clause = part.sign or separator, []
    return out + (separator if separator == "." and out else "")


def _clause(parts: list[_Part], present: Mapping[str, str]) -> str:
    """Render a clause: "" if all its attributes are missing."""
    rendered = [_part(part, present) for part in parts]
    has_value = [bool(text.strip()) and not isinstance(part, str) for part, text in zip(parts, rendered, strict=True)]
    if any(not isinstance(part, str) for part in parts) and not any(has_value):
        return ""
    words = [i for i, part in enumerate(parts) if isinstance(part, str) and part.strip()]
    last_value = max((i for i, has in enumerate(has_value) if has), default=-1)
    missing = [i for i, part in enumerate(parts) if isinstance(part, _Field) and not has_value[i]]
    if last_value >= 0 and missing and missing[-1] > max([last_value, *words]):
        rendered = rendered[: last_value + 1]  # a missing attribute ends the clause: the words before it go, too
    return "".join(rendered)


def _part(part: _Part, present: Mapping[str, str]) -> str:
    if isinstance(part, _Field):
        return part.value(present)
    if not isinstance(part, _Enclosed):
        return str(part)
    if part.opening == "(":
        inner = _render(part.parts, present)
        return f"({inner.strip()})" if inner.strip() else ""
    direct = [p for p in part.parts if isinstance(p, _Field)]
    if not all(field.value(present) for field in direct):
        return ""
    return "".join(p.sign if isinstance(p, _Separator) else _part(p, present) for p in part.parts)
