"""`augment:` of a recipe: training-time augmentation, one block a modality.

The options are the parameters of the modality's own `augment` method, so a registered modality brings its own; `mixup` is there
for every modality that can mix two signals.
"""

import inspect
import re
import types
import typing
from collections.abc import Mapping
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
    """Augmentation of one modality; the subclass for a modality has its own options beside `mixup`."""

    modality: ClassVar[str] = ""

    mixup: float = Field(0.0, description="largest share, up to 0.5, that a second training signal gets in the mix; 0 = off")
    custom: dict[str, dict[str, JsonValue]] = Field(
        {}, description="further augmentations after these: {registered name or package.module:Class: {option: value}}"
    )

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """What this modality has, the nearest first."""
        known = [*(n for n in cls.model_fields if n not in (MIXUP, CUSTOM)), MIXUP, CUSTOM]
        near = nearest(key, known)
        return f"unknown; known: {', '.join(known)}" + (near if "did you mean" in near else "")

    @property
    def own(self) -> dict[str, JsonValue]:
        """Arguments of the modality's `augment` that differ from its defaults."""
        return {k: v for k, v in self.model_dump(exclude_defaults=True).items() if k not in (MIXUP, CUSTOM)}

    @property
    def active(self) -> bool:
        """Whether anything is augmented."""
        return bool(self.mixup or self.custom or self.own)


def _mixup_share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
        raise invalid(f"{value!r} is not a share from 0 to 0.5")
    return value


_MODELS: dict[type[Modality], type[AugmentOptions]] = {}


def _model_of(kind: type[Modality]) -> type[AugmentOptions]:
    """The options model of a modality class, from the signature and docstring of its `augment`."""
    parameters = list(inspect.signature(kind.augment).parameters.values())[1:]
    given = {
        p.name: p.annotation for p in parameters if p.annotation is not p.empty
    }  # not the return type, which needs no model
    hints = typing.get_type_hints(types.SimpleNamespace(__annotations__=given), kind.augment.__globals__)
    texts = _descriptions(inspect.getdoc(kind.augment) or "")
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
        made.model_config = ConfigDict(extra="allow")  # the modality checks its options itself
        made.model_rebuild(force=True)
    return made


def options_model(modality: str) -> type[AugmentOptions]:
    """The class of the options of `modality`. RecipeError where there is no such modality."""
    kind = type(modalities.get(modality))
    if kind not in _MODELS:
        _MODELS[kind] = _model_of(kind)
    return _MODELS[kind]


def _descriptions(docstring: str) -> dict[str, str]:
    """{parameter: its description} of a docstring that writes "`name`: description; `other`, `third`: ..."."""
    texts: dict[str, str] = {}
    flat = " ".join(docstring.split())
    starts = list(re.finditer(r"((?:`\w+`(?:, )?)+)(?: \([^)]*\))?: ", flat))
    for number, start in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(flat)
        for name in re.findall(r"`(\w+)`", start[1]):
            texts[name] = flat[start.end() : end].strip(" ;.")
    return texts


def _typed(value: object) -> object:
    """Each modality's mapping as an instance of that modality's options model."""
    if not isinstance(value, Mapping):
        return value
    fields: dict[str, tuple[object, object]] = {str(m): (options_model(str(m)), ...) for m in value}
    every = create_model("AugmentBlock", **fields).model_validate(  # type: ignore[call-overload]  # fields are made at run time
        {m: options or {} for m, options in value.items()}
    )
    return {m: getattr(every, m) for m in fields}


def _inlined(schema: object, definitions: Mapping[str, object]) -> object:
    """A JSON Schema with its references replaced by what they refer to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return definitions[schema["$ref"].rsplit("/", 1)[-1]]
        return {k: _inlined(v, definitions) for k, v in schema.items() if k != "$defs"}
    return [_inlined(v, definitions) for v in schema] if isinstance(schema, list) else schema


class _PerModality:
    """The JSON Schema of `augment:`: one property a modality of the table."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schemas = {m: options_model(m).model_json_schema() for m in modalities.names()}
        properties = {m: _inlined(s, s.get("$defs", {})) for m, s in schemas.items()}
        return {"type": "object", "additionalProperties": False, "properties": properties}


AugmentBlock = Annotated[dict[str, SerializeAsAny[AugmentOptions]], BeforeValidator(_typed), _PerModality]
"""`augment:` of a recipe: modality -> its augmentation options."""
