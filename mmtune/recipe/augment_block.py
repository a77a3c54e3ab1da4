"""The recipe block `augment:`, training-time augmentation, with one sub-block per modality.

The keys of a sub-block are the parameters of the `augment` method of the modality's class, so a registered modality defines its
own keys. Every modality also has the keys `mixup`, `steps` and `custom`.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, JsonValue, SerializeAsAny, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mmtune import modalities
from mmtune.contracts import Modality
from mmtune.recipe.augment_step import AugmentStep, step_model
from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.recipe.signature_model import signature_fields, takes_any_keyword
from mmtune.runtime.plugins import nearest

MIXUP, STEPS, CUSTOM = "mixup", "steps", "custom"
OF_EVERY_MODALITY = (MIXUP, STEPS, CUSTOM)


class AugmentOptions(RecipeBlock):
    """Base class of the augmentation options of one modality. Subclasses add the options of a modality; see `options_model`."""

    modality: ClassVar[str] = ""

    mixup: float = Field(
        0.0,
        description="maximum weight, 0 to 0.5, with which the signal of another training row is mixed in; the weight is drawn "
        "uniformly from 0 to this value; 0: off",
    )
    steps: list[AugmentStep] = Field(
        [],
        description="augmentations that are applied in this order, after the options above, each {NAME: OPTIONS, p: PROBABILITY}; a list "
        "in place of this block is short for its steps",
    )
    custom: dict[str, dict[str, JsonValue]] = Field(
        {},
        description="augmentations of your own, applied after the steps, as {NAME: {OPTION: VALUE}}; NAME is a registered "
        "name or package.module:Class",
    )

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key: the known keys of this modality, and the most similar one."""
        known = [*(n for n in cls.model_fields if n not in OF_EVERY_MODALITY), *OF_EVERY_MODALITY]
        if key in modalities.get(cls.modality).augmentations:
            return f"is a step: write augment: {{{cls.modality}: {{steps: [{{{key}: ...}}]}}}}, beside the other options"
        near = nearest(key, known)
        return f"unknown; known: {', '.join(known)}" + (near if "did you mean" in near else "")

    @property
    def own(self) -> dict[str, JsonValue]:
        """The keyword arguments for the modality's `augment` method: its options that differ from their defaults."""
        return {k: v for k, v in self.model_dump(exclude_defaults=True).items() if k not in OF_EVERY_MODALITY}

    @property
    def switched_on(self) -> dict[str, JsonValue]:
        """{name: value} of all own options and steps that are switched on; a step of a library has the name of its class."""
        return {**self.own, **{str(s.options.get("name", s.name)): s.options or True for s in self.steps}}

    @property
    def active(self) -> bool:
        """Whether any augmentation is switched on."""
        return bool(self.mixup or self.custom or self.steps or self.own)


def _mixup_share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
        raise invalid(f"{value!r} is not a number from 0 to 0.5")
    return value


_MODELS: dict[type[Modality], type[AugmentOptions]] = {}  # cache of `options_model`


def _model_of(kind: type[Modality]) -> type[AugmentOptions]:
    """Create the pydantic model of a modality's augmentation options from the signature and docstring of its `augment` method."""
    fields = signature_fields(kind.augment)
    fields[MIXUP] = (
        Annotated[float, BeforeValidator(_mixup_share, json_schema_input_type=float)],
        AugmentOptions.model_fields[MIXUP],
    )
    fields[STEPS] = (list[step_model(kind.name)], AugmentOptions.model_fields[STEPS])  # type: ignore[misc]  # made at run time
    name = kind.name.title()
    made: type[AugmentOptions] = create_model(  # type: ignore[call-overload]  # fields are made at run time
        f"{name}Augment", __base__=AugmentOptions, __doc__=f"Augmentation of {kind.name} values.", **fields
    )
    made.modality = kind.name
    if not fields.keys() - {MIXUP, STEPS} and takes_any_keyword(kind.augment):
        made.model_config = ConfigDict(extra="allow")  # `augment(**options)` without named parameters checks its options itself
        made.model_rebuild(force=True)
    return made


def options_model(modality: str) -> type[AugmentOptions]:
    """The pydantic model of the augmentation options of `modality`. Raises RecipeError if that modality is unknown."""
    kind = type(modalities.get(modality))
    if kind not in _MODELS:
        _MODELS[kind] = _model_of(kind)
    return _MODELS[kind]


def _in_steps(modality: str, steps: list[object]) -> dict[str, object]:
    """The block that a list of steps is short for."""
    options = options_model(modality).model_fields.keys() - OF_EVERY_MODALITY - set(modalities.get(modality).augmentations)
    for key in (str(k) for step in steps for k in (step if isinstance(step, Mapping) else [step])):
        if key in options:
            raise invalid(f"{modality}: {key} is an option, no step: write {modality}: {{{key}: ..., steps: [...]}}")
    return {STEPS: steps}


def _typed(value: object) -> object:
    """Validate the mapping of each modality as an instance of that modality's options model."""
    if not isinstance(value, Mapping):
        return value
    fields: dict[str, tuple[object, object]] = {str(m): (options_model(str(m)), ...) for m in value}
    every = create_model("AugmentBlock", **fields).model_validate(  # type: ignore[call-overload]  # fields are made at run time
        {m: _in_steps(str(m), options) if isinstance(options, list) else options or {} for m, options in value.items()}
    )
    return {m: getattr(every, m) for m in fields}


def _inlined(schema: object, definitions: Mapping[str, object]) -> object:
    """Replace every "$ref" in a JSON Schema by the definition that it refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
        return {k: _inlined(v, definitions) for k, v in schema.items() if k != "$defs"}
    return [_inlined(v, definitions) for v in schema] if isinstance(schema, list) else schema


class _PerModality:
    """Makes pydantic generate the JSON Schema of `augment:`, an object with one property per registered modality."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schemas = {m: options_model(m).model_json_schema() for m in modalities.names()}
        blocks = {m: _inlined(s, s.get("$defs", {})) for m, s in schemas.items()}
        properties = {
            m: {"anyOf": [block, block["properties"][STEPS]]} for m, block in blocks.items() if isinstance(block, dict)
        }
        return {"type": "object", "additionalProperties": False, "properties": properties}


AugmentBlock = Annotated[dict[str, SerializeAsAny[AugmentOptions]], BeforeValidator(_typed), _PerModality]
"""Type of the recipe block `augment:`, which maps a modality to its augmentation options."""
