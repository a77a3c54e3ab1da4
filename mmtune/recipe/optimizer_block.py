"""The recipe key `train.optimizer`: which optimizer of a library is used, and its options.

train: {optimizer: lion, lr: 3e-5}                                  # a name alone
train: {optimizer: {name: adamw_8bit, min_8bit_size: 1024}}         # with options
train: {optimizer: {name: "package.module:Class", momentum: 0.9}}   # a torch optimizer of your own; its parameters are its options
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, field_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.plugins import is_target, nearest, register

TABLE: dict[str, object] = {
    "adamw": "torch.optim:AdamW",
    "adamw_8bit": "bitsandbytes.optim:AdamW8bit",
    "adafactor": "transformers.optimization:Adafactor",
    "lamb": "timm.optim:Lamb",
    "lion": "timm.optim:Lion",
}
"""Name of an optimizer -> its class, or "package.module:Class"."""


def register_optimizer(name: str, target: object) -> None:
    """Register a `torch.optim.Optimizer` class for `train.optimizer`, or "package.module:Class"."""
    register(TABLE, name, target, "optimizer")


class OptimizerBlock(RecipeBlock):
    """An optimizer. Learning rate, weight decay and betas are keys of `train`."""

    shardable: ClassVar[bool] = False
    """Whether each element of a weight is updated by itself, so that the optimizer may see only a shard of the weight (`train.shard`)."""
    has_betas: ClassVar[bool] = True

    name: str = Field(description="name of the optimizer")

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key, with the most similar option of the optimizer."""
        options = [n for n in cls.model_fields if n != "name"]
        return f"{cls.model_fields['name'].default} has no such option{nearest(key, options)}"

    @property
    def arguments(self) -> dict[str, JsonValue]:
        """The options as keyword arguments of the optimizer's class."""
        return {k: v for k, v in self.model_dump().items() if k != "name"}


class AdamWOptimizer(OptimizerBlock):
    """AdamW (arXiv 1711.05101) of torch, with its fused kernel where the device has one."""

    shardable = True

    name: Literal["adamw"] = Field("adamw", description="AdamW of torch, fused where the device has it")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")


class AdamW8bitOptimizer(OptimizerBlock):
    """AdamW whose two moments are stored in 8 bits (arXiv 2110.02861), of bitsandbytes: a quarter of the optimizer's memory."""

    name: Literal["adamw_8bit"] = Field(
        "adamw_8bit", description="AdamW with moments in 8 bits, of bitsandbytes (extra `optimizers`)"
    )
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    min_8bit_size: int = Field(4096, ge=1, description="parameters with fewer elements keep moments of 32 bits")


class AdafactorOptimizer(OptimizerBlock):
    """Adafactor (arXiv 1804.04235) of transformers, with the learning rate and the schedule of `train`. It has no betas."""

    has_betas = False

    name: Literal["adafactor"] = Field(
        "adafactor", description="Adafactor of transformers: stores one number for each row and column of a weight"
    )
    clip_threshold: float = Field(1.0, gt=0, description="maximum root mean square of an update")
    decay_rate: float = Field(-0.8, lt=0, description="exponent of the decay of the second moment over steps")
    scale_parameter: bool = Field(
        False, description="multiply the learning rate of a weight by its root mean square; true needs a much larger `lr`"
    )


class LambOptimizer(OptimizerBlock):
    """LAMB (arXiv 1904.00962) of timm, for large batches. Its own clipping is off; `train.clip_norm` clips."""

    name: Literal["lamb"] = Field("lamb", description="LAMB of timm, for large batches")
    eps: float = Field(1e-6, gt=0, description="added to the denominator")


class LionOptimizer(OptimizerBlock):
    """Lion (arXiv 2302.06675) of timm. Use an `lr` 3 to 10 times smaller, and a weight decay as much larger, than with AdamW."""

    shardable = True

    name: Literal["lion"] = Field("lion", description="Lion of timm: one moment; lr 3 to 10 times smaller than with adamw")


class CustomOptimizer(OptimizerBlock):
    """A `torch.optim.Optimizer` class of your own or of any library. Other keys are keyword arguments of the class."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    __pydantic_extra__: dict[str, JsonValue]

    name: str = Field(
        description="package.module:Class, or a name registered with `mmtune.register_optimizer`",
        json_schema_extra={"not": {"enum": list(TABLE)}},
    )

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        if not is_target(name) and name not in TABLE:
            raise invalid(f"no optimizer {name!r}{nearest(name, TABLE)} (or package.module:Class)")
        return name


BUILT_IN: dict[str, type[OptimizerBlock]] = {
    block.model_fields["name"].default: block
    for block in (AdamWOptimizer, AdamW8bitOptimizer, AdafactorOptimizer, LambOptimizer, LionOptimizer)
}
_CUSTOM = "package.module:Class"


def _kind(value: object) -> str:
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    return name if isinstance(name, str) and name in BUILT_IN else _CUSTOM


def _named(value: object) -> object:
    """Expand a bare string to {name: string}."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, OptimizerBlock) and (not isinstance(value, Mapping) or "name" not in value):
        raise invalid(f"needs the key `name`, one of: {', '.join(TABLE)}, or {_CUSTOM}")
    return value


AnyOptimizer: TypeAlias = (
    AdamWOptimizer | AdamW8bitOptimizer | AdafactorOptimizer | LambOptimizer | LionOptimizer | CustomOptimizer
)

Optimizer = Annotated[
    Annotated[AdamWOptimizer, Tag("adamw")]
    | Annotated[AdamW8bitOptimizer, Tag("adamw_8bit")]
    | Annotated[AdafactorOptimizer, Tag("adafactor")]
    | Annotated[LambOptimizer, Tag("lamb")]
    | Annotated[LionOptimizer, Tag("lion")]
    | Annotated[CustomOptimizer, Tag(_CUSTOM)],
    Discriminator(_kind),
    BeforeValidator(_named, json_schema_input_type=str | AnyOptimizer),
]
"""Type of the key `optimizer`; its `name` decides which class validates it."""
