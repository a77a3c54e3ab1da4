"""Convert a recipe's `objective` to loss terms with their functions, as `Objective` needs them.

The recipe module already checks names and values. Here the rest is resolved: the function of each loss, the options of custom
losses, and whether the pairs of each term are pairs of the recipe.
"""

import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict, JsonValue, TypeAdapter, create_model

from mmtune.contracts import Pair
from mmtune.errors import RecipeError
from mmtune.losses import TABLE, LossFunction
from mmtune.losses.families import LossFamily, family_of
from mmtune.losses.metric_learning import is_library_name, library_class
from mmtune.recipe.block import Number, RecipeBlock, check
from mmtune.recipe.class_label_block import ClassLabelTerm, OwnClassLabelTerm
from mmtune.recipe.objective_block import AUTO, AnyTerm, CustomTerm, ObjectiveTerms, TermBlock
from mmtune.runtime import plugins
from mmtune.runtime.plugins import nearest

_TERMS: TypeAdapter[list[AnyTerm]] = TypeAdapter(ObjectiveTerms)


@dataclass
class LossTerm:
    """One weighted loss of an objective.

    The fields before `key` have the meaning that they have in the recipe (see `mmtune.recipe.objective_block`).
    """

    loss: str
    weight: float = 1.0
    pairs: list[Pair] | None = None
    directions: Literal["both", "forward", "backward"] = "both"
    scale: float | None = None
    weights: str | None = None
    queries: Literal["rows", "items"] = "rows"
    guide: str | None = None
    guide_margin: float = 0.0
    tile: Literal["auto", "always", "never"] = "auto"
    teacher: str | None = None
    label: str = "group"
    classes: "list[str | int | float | bool] | str | None" = None
    miner: str | dict[str, JsonValue] | None = None
    proxy_lr: float | None = None
    views: dict[str, str] = field(default_factory=dict)
    key: str = "objective[0]"
    """Position of the term in the recipe, for messages."""
    options: dict[str, JsonValue] = field(default_factory=dict)
    """Keyword arguments of `function`."""
    function: LossFunction | None = None
    """The loss function, or the class of a `class_label` loss. None for `auto`, which is resolved later because it depends on the model."""
    family: LossFamily = "contrastive"


CLASS_LABEL_KEYS = [name for name in ClassLabelTerm.model_fields if name != "loss"]
"""Keys that every class-label loss can have."""
COMMON = [name for name in TermBlock.model_fields if name != "loss"]
"""Keys that every term can have."""


def parse_terms(terms: object, pairs: Sequence[Pair]) -> list[LossTerm]:
    """Parse a recipe's `objective`, given as parsed blocks or plain data.

    Raises RecipeError, naming the key (for example `objective[1].margn`), for what is not valid.
    """
    blocks: list[AnyTerm] = check(_TERMS, terms, "objective")
    return [_term(block, f"objective[{i}]", pairs) for i, block in enumerate(blocks)]


def _term(block: AnyTerm, key: str, pairs: Sequence[Pair]) -> LossTerm:
    term = LossTerm(block.loss, key=key, options=block.options)
    if block.loss != AUTO:
        term.function, term.family = find_loss(block.loss, f"{key}.loss")
    if term.family == "class_label" and not isinstance(block, ClassLabelTerm):
        block = check(OwnClassLabelTerm, block.model_dump(exclude_unset=True), key)
    if isinstance(block, ClassLabelTerm):
        term.options, common = block.options, {name: getattr(block, name) for name in CLASS_LABEL_KEYS}
    else:
        common = {name: getattr(block, name) for name in COMMON if name not in block.own_keys}
    if isinstance(block, CustomTerm) and term.function is not None:
        own = options_model(block.loss, term.function)
        # An option of the function with the same name as a common key takes precedence.
        shared = {name: common.pop(name) for name in COMMON if name in own.model_fields}
        given = {k: v for k, v in shared.items() if v != TermBlock.model_fields[k].default}
        term.options = check(own, term.options | given, key).model_dump(exclude_unset=True)
    for name, value in common.items():
        setattr(term, name, value)
    if term.views:
        _check_views(term)
    for pair in term.pairs or []:
        if pair not in [tuple(p) for p in pairs]:
            raise RecipeError(f"{key}.pairs: {list(pair)} is not among the recipe's pairs, {[list(p) for p in pairs]}")
    return term


def _check_views(term: LossTerm) -> None:
    """Raise RecipeError for options that do not go with two views of an item."""
    if term.family != "contrastive":
        raise RecipeError(f"{term.key}.views: {term.loss} is no contrastive loss; use info_nce, sigmoid or triplet")
    for name in ("pairs", "weights", "guide", "teacher"):
        if getattr(term, name):
            raise RecipeError(f"{term.key}.{name}: has no effect on two views of an item; leave it out, or leave `views` out")


def find_loss(name: str, key: str = "loss") -> tuple[LossFunction, LossFamily]:
    """Return the loss function and its family. Raises RecipeError, naming `key`, if there is none.

    name: a key of `losses.TABLE`, "package.module:function", or "pml:NAME" for a class of pytorch-metric-learning
    """
    if is_library_name(name):
        return library_class("loss", name, key), "class_label"
    function = plugins.resolve(TABLE, name, "loss", key=key)
    family = family_of(function)
    if family is None:
        raise RecipeError(
            f"{key}: {name} is not marked as a loss: decorate it with contrastive_loss, scored_pairs_loss, distillation_loss or "
            "class_label_loss of mmtune.losses"
        )
    return function, family


def loss_options(function: LossFunction) -> dict[str, object]:
    """{option: annotation} of the keyword-only parameters of a loss."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints.get(p.name, object) for p in parameters if p.kind is p.KEYWORD_ONLY}


class CustomOptions(RecipeBlock):
    """Base class for the options of a custom loss. `options_model` creates a subclass for each loss."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    loss_name: ClassVar[str] = ""

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """Error text for an unknown option, with the nearest known one."""
        return f"{cls.loss_name} has no such option{nearest(key, [*cls.model_fields, *COMMON])}"


def options_model(name: str, function: LossFunction) -> type[CustomOptions]:
    """Create a pydantic model of a loss function's options, from its keyword-only parameters and their annotations."""
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    fields: dict[str, tuple[object, object]] = {
        option: (Number if kind is float else kind, ... if defaults[option] is inspect.Parameter.empty else defaults[option])
        for option, kind in loss_options(function).items()
    }
    made: type[CustomOptions] = create_model("Options", __base__=CustomOptions, **fields)  # type: ignore[call-overload]
    made.loss_name = name
    return made
