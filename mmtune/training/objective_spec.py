"""`objective:` of a recipe -> checked loss terms. An unknown loss or option names its key and the nearest valid one."""

import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from mmtune.contracts import Pair
from mmtune.errors import RecipeError
from mmtune.losses import TABLE, LossFunction
from mmtune.losses.families import LossFamily, family_of
from mmtune.runtime import plugins
from mmtune.runtime.plugins import nearest

AUTO = "auto"
"""The checkpoint's own loss: sigmoid where the model has a logit bias, InfoNCE elsewhere."""


@dataclass
class LossTerm:
    """One weighted loss of an objective. Every field up to `teacher` is a recipe option, beside the loss's own options."""

    loss: str
    weight: float = 1.0
    pairs: list[list[str]] | None = None
    """Only these of the recipe's pairs."""
    directions: Literal["both", "forward", "backward"] = "both"
    """forward: queries are the pair's first modality; contrastive losses only."""
    scale: float | None = None
    """A fixed logit scale instead of the model's learned one."""
    weights: str | None = None
    """A column of graded relevance: the weight of each row's own pair; only row pairs are positives then."""
    queries: Literal["rows", "items"] = "rows"
    """A query item that stands in several rows weighs as much as its rows, or as one."""
    guide: str | None = None
    """A teacher whose vectors mask false negatives of the batch (a name under `teachers`)."""
    guide_margin: float = 0.0
    tile: Literal["auto", "always", "never"] = "auto"
    """Whether the logits are computed in tiles; auto: above a size."""
    teacher: str | None = None
    """A name under `teachers`; for distillation losses."""
    key: str = field(default="objective[0]", metadata={"hidden": True})
    options: dict[str, object] = field(default_factory=dict, metadata={"hidden": True})
    function: LossFunction | None = field(default=None, metadata={"hidden": True})
    family: LossFamily = field(default="contrastive", metadata={"hidden": True})


def parse_terms(terms: Sequence[Mapping[str, object] | str], pairs: Sequence[Pair]) -> list[LossTerm]:
    """Check the recipe's list. Raises RecipeError naming the key, e.g. `objective[1].margn`."""
    if not terms:
        raise RecipeError("objective: is empty; name at least one loss, e.g. [{loss: info_nce}]")
    parsed = [_term(t, f"objective[{i}]", pairs) for i, t in enumerate(terms)]
    if not any(t.weight for t in parsed):
        raise RecipeError("objective: every weight is 0, so nothing would be trained")
    return parsed


def _term(given: Mapping[str, object] | str, key: str, pairs: Sequence[Pair]) -> LossTerm:
    """One entry of the list; a string is the name of a loss without options."""
    if isinstance(given, str):
        given = {"loss": given}
    if not isinstance(given, Mapping) or "loss" not in given:
        raise RecipeError(f"{key}: needs the key `loss`, one of: {', '.join([AUTO, *TABLE])}, or package.module:function")
    name = str(given["loss"])
    term = LossTerm(loss=name, key=key)
    if name != AUTO:
        term.function, term.family = find_loss(name, f"{key}.loss")
    common: dict[str, object] = {f.name: f.type for f in fields(LossTerm) if not f.metadata.get("hidden")}
    own = loss_options(term.function) if term.function else {}
    for option, value in given.items():
        option_key = f"{key}.{option}"
        if option in own:
            term.options[option] = _typed(value, own[option], option_key)
        elif option in common:
            setattr(term, option, _typed(value, common[option], option_key))
        else:
            raise RecipeError(f"{option_key}: {name} has no such option{nearest(option, [*own, *common])}")
    if term.weight < 0:
        raise RecipeError(f"{key}.weight: {term.weight} is negative; weights are 0 or more")
    if term.scale is not None and term.scale <= 0:
        raise RecipeError(f"{key}.scale: {term.scale} is not positive")
    for pair in term.pairs or []:
        if tuple(pair) not in {tuple(p) for p in pairs}:
            raise RecipeError(f"{key}.pairs: {pair} is not one of the recipe's pairs: {[list(p) for p in pairs]}")
    return term


def find_loss(name: str, key: str = "loss") -> tuple[LossFunction, LossFamily]:
    """The loss called `name` in `losses.TABLE`, or at `package.module:function`, and its family. RecipeError names `key`."""
    function = plugins.resolve(TABLE, name, "loss", key=key)
    family = family_of(function)
    if family is None:
        raise RecipeError(
            f"{key}: {name} is not marked as a loss: decorate it with contrastive_loss, scored_pairs_loss or distillation_loss "
            "of mmtune.losses"
        )
    return function, family


def loss_options(function: LossFunction) -> dict[str, object]:
    """Keyword-only parameters of a loss and their annotations."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints.get(p.name, object) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _typed(value: object, annotation: object, key: str) -> object:
    """`value` as `annotation` demands (numbers, strings, Literal, lists, unions); RecipeError naming `key` otherwise."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{key}: {value!r}{nearest(str(value), [str(a) for a in arguments])}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(value, next(a for a in arguments if a is not type(None)), key)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{key}: {value!r} is not a list")
        return [_typed(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value)]
    if not isinstance(annotation, type):
        return value
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise RecipeError(f"{key}: {value} is not a finite number")
        return float(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise RecipeError(f"{key}: {value!r} is not {'a number' if annotation in (int, float) else f'a {annotation.__name__}'}")
    return value
