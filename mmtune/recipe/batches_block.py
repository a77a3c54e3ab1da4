"""The recipe block `data.batches:`: which rows form a batch.

batches: spread                                     # short for {plan: spread}
batches: {groups: 16, rows: 4}                      # 16 groups x 4 rows; short for {plan: groups, groups: 16, rows: 4}
batches: {plan: balanced, column: category}
batches: {plan: package.module:function, stride: 3} # a plan of your own; its keyword-only parameters are its options
"""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.plugins import is_target, nearest

PLANS: dict[str, str | Callable[..., object]] = {
    "random": "mmtune.data.loader.plans:random_batches",
    "spread": "mmtune.data.loader.plans:spread_batches",
    "groups": "mmtune.data.loader.plans:group_batches",
    "balanced": "mmtune.data.loader.plans:balanced_batches",
    "one_source": "mmtune.data.loader.plans:one_source_batches",
    "buckets": "mmtune.data.loader.plans:bucket_batches",
}
"""{batch plan in a recipe: the function, or "package.module:function" where it is defined}."""


class PlanBlock(RecipeBlock):
    """How rows are divided into batches."""

    keeps_rows_together: ClassVar[bool] = True
    """Whether batches have to stay as the plan makes them, so that `mining.use.confusable` cannot rearrange them."""

    plan: str = Field(description="name of the batch plan")

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key, with the most similar option of the plan."""
        known = [name for name in cls.model_fields if name != "plan"]
        name = cls.model_fields["plan"].default
        return f"the batch plan {name} has no such option{nearest(key, known) if known else ''}"

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keyword arguments for the plan's function."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "plan"}


class RandomBatches(PlanBlock):
    """Rows are shuffled."""

    keeps_rows_together = False
    plan: Literal["random"] = Field("random", description="name of the batch plan")


class SpreadBatches(PlanBlock):
    """Rows of one group are put into different batches if possible, so that a batch has many groups."""

    keeps_rows_together = False
    plan: Literal["spread"] = Field("spread", description="name of the batch plan")


class GroupBatches(PlanBlock):
    """P groups x K rows: every batch has several rows of each of its groups, so that losses within a modality find positives.

    Each row is used once in an epoch. A group with more than `rows` rows is divided into parts of nearly equal size; a part may be
    smaller than `rows`. Rows without a group are groups of their own.
    """

    plan: Literal["groups"] = Field("groups", description="name of the batch plan; may be omitted if `rows` is given")
    groups: int | None = Field(
        None, ge=2, description="groups per batch; `groups` x `rows` must be train.batch_size; null: train.batch_size / `rows`"
    )
    rows: int = Field(ge=2, description="most rows of a group in a batch")
    column: str = Field("group", description="metadata column with the group of each row")


class BalancedBatches(PlanBlock):
    """Every class has the same number of rows in an epoch, give or take one, and in each batch.

    An epoch has as many rows as without balancing. Rows of rare classes are repeated, and of frequent classes a random part is
    used, another one in each epoch. Rows without a class are not used.
    """

    keeps_rows_together = False
    plan: Literal["balanced"] = Field("balanced", description="name of the batch plan")
    column: str = Field("group", description="metadata column with the class of each row")


class OneSourceBatches(PlanBlock):
    """All rows of a batch come from one training set, or have the same value in a column, so that they are each other's
    negatives."""

    plan: Literal["one_source"] = Field("one_source", description="name of the batch plan")
    column: str | None = Field(None, description="metadata column with the source of each row; null: the training set")


class BucketBatches(PlanBlock):
    """Batches of rows with a similar length or duration, which need less padding.

    The shuffled rows of `sorted_batches` batches at a time are sorted by length and cut into batches, which are then shuffled.
    """

    plan: Literal["buckets"] = Field("buckets", description="name of the batch plan")
    column: str | None = Field(None, description="numeric metadata column with the length, e.g. seconds")
    modality: str | None = Field(
        None, description="instead of a column: the modality whose size in bytes, as it is stored, is the length"
    )
    sorted_batches: int = Field(50, ge=2, description="number of batches whose rows are sorted together")

    @model_validator(mode="after")
    def _one_length(self) -> "BucketBatches":
        if (self.column is None) == (self.modality is None):
            raise invalid("buckets need a length: set either column (numeric metadata) or modality")
        return self


class CustomBatches(PlanBlock):
    """A batch plan of your own: `package.module:function`, or a name registered with `mmtune.register_batch_plan`.

    Keys other than `plan` are its options. They must be keyword-only parameters of the function.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    __pydantic_extra__: dict[str, JsonValue]

    plan: str = Field(
        description="package.module:function, or a registered name", json_schema_extra={"not": {"enum": list(PLANS)}}
    )

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keys other than `plan`, as keyword arguments for the plan's function."""
        return dict(self.__pydantic_extra__)


AnyPlan: TypeAlias = (
    RandomBatches | SpreadBatches | GroupBatches | BalancedBatches | OneSourceBatches | BucketBatches | CustomBatches
)
BUILT_IN = tuple(PLANS)
CUSTOM = "package.module:function"


def _spelled_out(value: object) -> object:
    """Expand a bare string to {plan: string}. A mapping without `plan` that has `rows` gets `plan: groups`."""
    if isinstance(value, PlanBlock):
        return value
    if isinstance(value, str):
        value = {"plan": value}
    if isinstance(value, Mapping) and "plan" not in value and {"rows", "groups"} & value.keys():
        value = {"plan": "groups", **value}
    if not isinstance(value, Mapping) or not isinstance(value.get("plan"), str):
        raise invalid(f"{value!r} is no batch plan{nearest('', PLANS)}, or {{groups: P, rows: K}}")
    if value["plan"] not in PLANS and not is_target(value["plan"]):
        raise invalid(f"{value['plan']!r}{nearest(value['plan'], PLANS)} (or package.module:function)")
    return value


def _kind(value: object) -> str:
    name = value.get("plan") if isinstance(value, Mapping) else getattr(value, "plan", None)
    return name if name in BUILT_IN else CUSTOM


BatchesBlock = Annotated[
    Annotated[RandomBatches, Tag("random")]
    | Annotated[SpreadBatches, Tag("spread")]
    | Annotated[GroupBatches, Tag("groups")]
    | Annotated[BalancedBatches, Tag("balanced")]
    | Annotated[OneSourceBatches, Tag("one_source")]
    | Annotated[BucketBatches, Tag("buckets")]
    | Annotated[CustomBatches, Tag(CUSTOM)],
    Discriminator(_kind),
    BeforeValidator(_spelled_out, json_schema_input_type=str | AnyPlan),
]
"""Type of the recipe key `data.batches`; the key `plan` decides which class validates it."""
