"""`objective:` of a recipe -> checked terms. An unknown loss or option names its key and the nearest valid one."""

import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mmtune.contracts import Pair
from mmtune.errors import RecipeError
from mmtune.losses import TABLE

AUTO = "auto"
"""The checkpoint's own loss: sigmoid where the model has a bias, InfoNCE elsewhere."""


@dataclass
class Term:
    """One weighted loss of an objective. Every field is an option a recipe may set, beside the loss's own."""

    loss: str
    weight: float = 1.0
    pairs: list[list[str]] | None = None
    """Only these of the recipe's pairs."""
    directions: Literal["both", "forward", "backward"] = "both"
    """forward: queries of the pair's first name; contrastive losses only."""
    scale: float | None = None
    """A fixed scale instead of the model's learned one."""
    weights: str | None = None
    """A column of graded relevance: each row's own pair weighs that much; only own pairs are positives then."""
    queries: Literal["rows", "items"] = "rows"
    """A query item that stands in several rows weighs as much as its rows, or as one."""
    guide: str | None = None
    """A teacher whose vectors mask in-batch negatives (a name under `teachers`)."""
    guide_margin: float = 0.0
    tile: Literal["auto", "always", "never"] = "auto"
    """Whether the logits are made in tiles; auto: past a size."""
    teacher: str | None = None
    """A name under `teachers`; for distillation losses."""
    key: str = field(default="objective[0]", metadata={"hidden": True})
    options: dict[str, Any] = field(default_factory=dict, metadata={"hidden": True})
    function: Callable[..., Any] | None = field(default=None, metadata={"hidden": True})
    family: type | None = field(default=None, metadata={"hidden": True})


def parse_terms(terms: Sequence[Mapping[str, Any]], pairs: Sequence[Pair]) -> list[Term]:
    """Check the recipe's list. Raises RecipeError naming the key, e.g. `objective[1].margn`."""
    if not terms:
        raise RecipeError("objective: is empty; name at least one loss, e.g. [{loss: info_nce}]")
    parsed = [_term(t, f"objective[{i}]", pairs) for i, t in enumerate(terms)]
    if not any(t.weight for t in parsed):
        raise RecipeError("objective: every weight is 0, so nothing would be trained")
    return parsed


def _term(given: Mapping[str, Any], key: str, pairs: Sequence[Pair]) -> Term:
    if isinstance(given, str):
        given = {"loss": given}
    if not isinstance(given, Mapping) or "loss" not in given:
        raise RecipeError(f"{key}: needs the key `loss`, one of: {', '.join([AUTO, *TABLE])}, or package.module:function")
    name = given["loss"]
    function, family = (None, None) if name == AUTO else find_loss(name, f"{key}.loss")
    common: dict[str, Any] = {f.name: f.type for f in fields(Term) if not f.metadata.get("hidden")}
    own = own_options(function) if function else {}
    term = Term(loss=name, key=key, function=function, family=family)
    for option, value in given.items():
        where = f"{key}.{option}"
        if option in own:
            term.options[option] = typed(value, own[option], where)
        elif option in common:
            setattr(term, option, typed(value, common[option], where))
        else:
            raise RecipeError(f"{where}: {name} has no such option{nearest(option, [*own, *common])}")
    if term.weight < 0:
        raise RecipeError(f"{key}.weight: {term.weight} is negative; weights are 0 or more")
    if term.scale is not None and term.scale <= 0:
        raise RecipeError(f"{key}.scale: {term.scale} is not positive")
    for pair in term.pairs or []:
        if tuple(pair) not in {tuple(p) for p in pairs}:
            raise RecipeError(f"{key}.pairs: {pair} is not one of the recipe's pairs: {[list(p) for p in pairs]}")
    return term


def find_loss(name: str, key: str = "loss") -> tuple[Callable[..., Any], type]:
    """The function called `name` in losses.TABLE, or `package.module:function`, and what its first parameter takes."""
    target = TABLE.get(name, name if isinstance(name, str) and ":" in name else None)
    if target is None:
        raise RecipeError(f"{key}: no loss {name!r}{nearest(str(name), [AUTO, *TABLE])} (or package.module:function)")
    module, _, attribute = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise RecipeError(f"{key}: cannot load {target!r}: {e}") from None
    first = next(iter(typing.get_type_hints(function).values()), None)
    if not isinstance(first, type) or first.__name__ not in ("Block", "Scored", "Taught"):
        raise RecipeError(f"{key}: {target}: annotate its first parameter with Block, Scored or Taught of mmtune.losses")
    return function, first


def own_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a loss and their annotations."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind is p.KEYWORD_ONLY}


def nearest(word: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?" or the list of what there is."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"


def typed(value: Any, annotation: Any, key: str) -> Any:
    """`value` as `annotation` says (numbers, strings, Literal, lists, unions); RecipeError naming `key` otherwise."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{key}: {value!r}{nearest(str(value), [str(a) for a in arguments])}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return typed(value, next(a for a in arguments if a is not type(None)), key)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{key}: {value!r} is not a list")
        return [typed(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value)]
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise RecipeError(f"{key}: {value} is not a finite number")
        return float(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise RecipeError(f"{key}: {value!r} is not {'a number' if annotation in (int, float) else f'a {annotation.__name__}'}")
    return value
