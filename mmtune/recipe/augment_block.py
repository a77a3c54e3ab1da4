"""The recipe block `augment:`, training-time augmentation, with one sub-block per modality.

The keys of a sub-block are the parameters of the `augment` method of the modality's class, so a registered modality defines its
own keys. Every modality also has the keys `mixup` and `custom`.
"""

import inspect
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, JsonValue, SerializeAsAny, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mmtune import modalities
from mmtune.contracts import Modality
from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.plugins import nearest

MIXUP, CUSTOM = "mixup", "custom"


class AugmentOptions(RecipeBlock):
    """Base class of the augmentation options of one modality. Subclasses add the options of a modality; see `options_model`."""

    modality: ClassVar[str] = ""

    mixup: float = Field(
        0.0,
        description="maximum weight, 0 to 0.5, with which the signal of another training row is mixed in; the weight is drawn "
        "uniformly from 0 to this value; 0: off",
    )
    custom: dict[str, dict[str, JsonValue]] = Field(
        {},
        description="augmentations of your own, applied after the built-in ones, as {NAME: {OPTION: VALUE}}; NAME is a registered "
        "name or package.module:Class",
    )

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key: the known keys of this modality, and the most similar one."""
        known = [*(n for n in cls.model_fields if n not in (MIXUP, CUSTOM)), MIXUP, CUSTOM]
        near = nearest(key, known)
        return f"unknown; known: {', '.join(known)}" + (near if "did you mean" in near else "")

    @property
    def own(self) -> dict[str, JsonValue]:
        """The keyword arguments for the modality's `augment` method: its options that differ from their defaults."""
        return {k: v for k, v in self.model_dump(exclude_defaults=True).items() if k not in (MIXUP, CUSTOM)}

    @property
    def active(self) -> bool:
        """Whether any augmentation is switched on."""
        return bool(self.mixup or self.custom or self.own)


def _mixup_share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
        raise invalid(f"{value!r} is not a number from 0 to 0.5")
    return value


_MODELS: dict[type[Modality], type[AugmentOptions]] = {}  # cache of `options_model`


def _model_of(kind: type[Modality]) -> type[AugmentOptions]:
    """Create the pydantic model of a modality's augmentation options from the signature and docstring of its `augment` method."""
    parameters = list(inspect.signature(kind.augment).parameters.values())[1:]
    # the parameters only: resolving the return type could fail, because it may be imported for type checkers only
    given = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    hints = typing.get_type_hints(types.SimpleNamespace(__annotations__=given), kind.augment.__globals__)
    texts = _descriptions(inspect.getdoc(kind.augment) or "", given)
    fields: dict[str, tuple[object, object]] = {
        p.name: (hints.get(p.name, JsonValue), Field(p.default, description=texts.get(p.name, "")))
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    fields[MIXUP] = (
        Annotated[float, BeforeValidator(_mixup_share, json_schema_input_type=float)],
        AugmentOptions.model_fields[MIXUP],
    )
    name = kind.name.title()
    made: type[AugmentOptions] = create_model(  # type: ignore[call-overload]  # fields are made at run time
        f"{name}Augment", __base__=AugmentOptions, __doc__=f"Augmentation of {kind.name} values.", **fields
    )
    made.modality = kind.name
    if not fields.keys() - {MIXUP} and any(p.kind is p.VAR_KEYWORD for p in parameters):
        made.model_config = ConfigDict(extra="allow")  # `augment(**options)` without named parameters checks its options itself
        made.model_rebuild(force=True)
    return made


def options_model(modality: str) -> type[AugmentOptions]:
    """The pydantic model of the augmentation options of `modality`. Raises RecipeError if that modality is unknown."""
    kind = type(modalities.get(modality))
    if kind not in _MODELS:
        _MODELS[kind] = _model_of(kind)
    return _MODELS[kind]


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


def _typed(value: object) -> object:
    """Validate the mapping of each modality as an instance of that modality's options model."""
    if not isinstance(value, Mapping):
        return value
    fields: dict[str, tuple[object, object]] = {str(m): (options_model(str(m)), ...) for m in value}
    every = create_model("AugmentBlock", **fields).model_validate(  # type: ignore[call-overload]  # fields are made at run time
        {m: options or {} for m, options in value.items()}
    )
    return {m: getattr(every, m) for m in fields}


def _inlined(schema: object, definitions: Mapping[str, object]) -> object:
    """Replace every "$ref" in a JSON Schema by the definition that it refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return definitions[schema["$ref"].rsplit("/", 1)[-1]]
        return {k: _inlined(v, definitions) for k, v in schema.items() if k != "$defs"}
    return [_inlined(v, definitions) for v in schema] if isinstance(schema, list) else schema


class _PerModality:
    """Makes pydantic generate the JSON Schema of `augment:`, an object with one property per registered modality."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schemas = {m: options_model(m).model_json_schema() for m in modalities.names()}
        properties = {m: _inlined(s, s.get("$defs", {})) for m, s in schemas.items()}
        return {"type": "object", "additionalProperties": False, "properties": properties}


AugmentBlock = Annotated[dict[str, SerializeAsAny[AugmentOptions]], BeforeValidator(_typed), _PerModality]
"""Type of the recipe block `augment:`, which maps a modality to its augmentation options."""
