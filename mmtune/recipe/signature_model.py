"""Pydantic fields from the parameters of a function and the descriptions of its docstring."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection

from pydantic import Field, JsonValue


def signature_fields(function: Callable[..., object]) -> dict[str, tuple[object, object]]:
    """{parameter: (its type, a pydantic field with its default and description)} of the named parameters, without `self`."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    # the parameters only: resolving the return type could fail, because it may be imported for type checkers only
    given = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    hints = typing.get_type_hints(types.SimpleNamespace(__annotations__=given), function.__globals__)
    texts = _descriptions(inspect.getdoc(function) or "", given)
    return {
        p.name: (
            hints.get(p.name, JsonValue),
            Field(... if p.default is p.empty else p.default, description=texts.get(p.name, "")),
        )
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def takes_any_keyword(function: Callable[..., object]) -> bool:
    """Whether the function has a parameter `**options`."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _descriptions(docstring: str, names: Collection[str]) -> dict[str, str]:
    """Parse the descriptions of the parameters `names` from docstring lines "NAME: description" or "NAME, NAME: description".

    A description goes on over further lines until the next such line or an empty one.
    """
    texts: dict[str, str] = {}
    current: list[str] = []
    for line in docstring.splitlines():
        start = re.match(r"(\w+(?:, \w+)*): (.+)", line)
        if start and set(start[1].split(", ")) <= set(names):
            current = start[1].split(", ")
            texts |= dict.fromkeys(current, start[2].strip())
        elif line.strip():
            texts |= {name: f"{texts[name]} {line.strip()}" for name in current}
        else:
            current = []
    return texts
