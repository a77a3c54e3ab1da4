"""One step of the list `augment.MODALITY`: {NAME: OPTIONS, p: PROBABILITY}.

NAME is an entry of the modality's `augmentations`, a registered augmentation, or package.module:Class. The options are the parameters of
its class, with their types. A value that is no mapping is that of the first parameter: {speed: [0.9, 1.1]} is {speed: {factor: [0.9, 1.1]}}.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from mmtune import modalities
from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.recipe.signature_model import signature_fields, takes_any_keyword
from mmtune.runtime.plugins import import_target, is_target, nearest

P = "p"


class AugmentStep(RecipeBlock):
    """One augmentation and the probability with which it is applied. Subclasses have the augmentations of a modality as fields."""

    model_config = ConfigDict(extra="allow")
    modality: ClassVar[str] = ""

    p: float = Field(1.0, ge=0, le=1, description="probability with which the augmentation is applied to a row")

    @property
    def name(self) -> str:
        """The name of the augmentation."""
        return next(k for k, v in self._given() if v is not None)

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keyword arguments of its class."""
        value = dict(self._given())[self.name]
        return value.model_dump(exclude_unset=True) if isinstance(value, RecipeBlock) else dict(value)  # type: ignore[call-overload]

    def _given(self) -> list[tuple[str, object]]:
        every = {**{k: getattr(self, k) for k in type(self).model_fields}, **(self.model_extra or {})}
        return [(k, v) for k, v in every.items() if k != P]

    @model_validator(mode="before")
    @classmethod
    def _one_augmentation(cls, value: object) -> object:
        known = [*(k for k in cls.model_fields if k != P), *modalities.AUGMENTATIONS]
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, Mapping):
            raise invalid(f"{value!r} is not {{NAME: OPTIONS, p: PROBABILITY}}; names: {', '.join(known)}")
        names = [str(k) for k in value if k != P]
        if len(names) != 1:
            raise invalid(
                f"one augmentation is needed, there are {len(names)} ({', '.join(names) or 'none'}); write each as its own list item"
            )
        name = names[0]
        if name not in known and not is_target(name):
            raise invalid(f"no augmentation {name!r}{nearest(name, known)} (or package.module:Class)")
        options = value[name]
        if options is None or options is True:
            options = {}
        if not isinstance(options, Mapping):
            if name not in cls.model_fields:
                raise invalid(f"{name}: {options!r} is not a mapping of options")
            first = next(iter(_options_model(cls.modality, name).model_fields))
            options = {first: options}
        return {name: dict(options), **({P: value[P]} if P in value else {})}

    @model_serializer(mode="wrap")
    def _without_others(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {k: v for k, v in handler(self).items() if v is not None and (k != P or v != 1)}


_OPTIONS: dict[str, type[RecipeBlock]] = {}  # class path -> its options; cache of `_options_model`


def _options_model(modality: str, name: str) -> type[RecipeBlock]:
    """The pydantic model of the options of one augmentation: the parameters of its class."""
    target = modalities.get(modality).augmentations[name]
    if target not in _OPTIONS:
        cls = import_target(target, "augmentation")
        made: type[RecipeBlock] = create_model(  # type: ignore[call-overload]  # fields are made at run time
            f"{modality.title()}{name.title().replace('_', '')}",
            __base__=RecipeBlock,
            __doc__=(cls.__doc__ or "").partition("\n")[0],
            **signature_fields(cls.__init__),
        )
        if takes_any_keyword(cls.__init__):
            made.model_config = ConfigDict(extra="allow")
            made.model_rebuild(force=True)
        _OPTIONS[target] = made
    return _OPTIONS[target]


def step_model(modality: str) -> type[AugmentStep]:
    """The pydantic model of the steps of a modality, with a field for each of its augmentations; exactly one is given."""
    models = {name: _options_model(modality, name) for name in modalities.get(modality).augmentations}
    fields = {name: (model | None, Field(None, description=model.__doc__)) for name, model in models.items()}
    made: type[AugmentStep] = create_model(  # type: ignore[call-overload]  # fields are made at run time
        f"{modality.title()}Step",
        __base__=AugmentStep,
        __doc__=f"One augmentation of {modality} values and its probability.",
        **fields,
    )
    made.modality = modality
    return made
