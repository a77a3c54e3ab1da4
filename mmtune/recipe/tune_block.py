"""The recipe block `tune:`: which weights of each tower are trained.

tune: lora                                       # for all towers: full, head, lora, qlora, partial or frozen
tune: {how: partial, blocks: 2}                  # with options
tune: {image: lora, text: {how: full, layer_decay: 0.8}}      # one entry per tower
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.plugins import nearest

How = Literal["full", "head", "lora", "qlora", "partial", "frozen"]
WAYS: tuple[str, ...] = get_args(How)


class TowerTuning(RecipeBlock):
    """Base class of the ways to train a tower; holds the keys that all of them have."""

    head_first: float = Field(
        0.0,
        ge=0,
        description="number of epochs before those of `train` in which only a linear head is trained (LP-FT: linear probing, then "
        "fine-tuning); 0: off",
    )
    head_lr: float | None = Field(None, gt=0, description="learning rate of the head_first epochs; null: train.lr")

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key: for which `how` the key exists, or the most similar key."""
        how = cls.model_fields["how"].default
        if goes_with := [h for h, kind in KINDS.items() if key in kind.model_fields]:
            return f"is an option of how: {' or '.join(goes_with)}; it has no effect with how: {how}"
        return f"unknown{nearest(key, [n for kind in KINDS.values() for n in kind.model_fields])}"

    @field_validator("head_lr")
    @classmethod
    def _rate_has_epochs(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value and not info.data.get("head_first", 1):
            raise invalid("is the learning rate of the head_first epochs; set head_first, too, or set train.lr instead")
        return value


class LearningTuning(TowerTuning):
    """Base class of the ways in which something of the tower is trained."""

    lr: float | None = Field(None, gt=0, description="peak learning rate of this tower and its head; null: train.lr")
    weight_decay: float | None = Field(
        None, ge=0, description="weight decay of this tower and its head; null: train.weight_decay"
    )


class FullTuning(LearningTuning):
    """All weights of the tower are trained."""

    how: Literal["full"] = Field("full", description="all weights of the tower")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="layer-wise learning rate decay: factor from each layer to the layer below; 1: off"
    )
    unfreeze_every: float | None = Field(
        None,
        gt=0,
        description="gradual unfreezing (ULMFiT): at first only what follows the last block is trained; after every this many epochs "
        "one more block, from the last to the first, then what is before the blocks; null: off",
    )


class HeadTuning(LearningTuning):
    """The tower is frozen, and a linear head on top of it is trained."""

    how: Literal["head"] = Field("head", description="a linear head on top of the frozen tower")
    layer_decay: ClassVar[float] = 1.0


class AdapterTuning(LearningTuning):
    """Base class of lora and qlora: low-rank adapters in the tower's blocks, which are merged into the weights after training."""

    how: Literal["lora", "qlora"]
    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float | None = Field(None, gt=0, description="the output of the adapters is scaled by alpha / rank; null: 2 x rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the adapters")
    targets: list[str] | None = Field(
        None,
        description="layers that get adapters, by the ends of their names, e.g. [q_proj, v_proj]; null: all linear and pointwise "
        "convolution layers in the blocks",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="layer-wise learning rate decay: factor from each block to the block below; 1: off"
    )


class LoraTuning(AdapterTuning):
    """LoRA: low-rank adapters in the tower's blocks are trained, then merged into the weights."""

    how: Literal["lora"] = Field("lora", description="low-rank adapters, merged into the weights after training")


class QloraTuning(AdapterTuning):
    """QLoRA: like lora, but the frozen weights are quantized to 4 bits during training."""

    how: Literal["qlora"] = Field("qlora", description="like lora, with the frozen weights quantized to 4 bits")


class PartialTuning(LearningTuning):
    """The last blocks of the tower are trained, or its normalisation layers, or both."""

    how: Literal["partial"] = Field(
        "partial", description="the last blocks and the layers that follow them, or the normalisation layers"
    )
    blocks: int | None = Field(
        None, ge=1, description="number of blocks at the end of the tower that are trained; null: 2, or none if `norms` is true"
    )
    norms: bool = Field(False, description="train all normalisation layers of the tower")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="layer-wise learning rate decay: factor from each layer to the layer below; 1: off"
    )


class FrozenTuning(TowerTuning):
    """Nothing of the tower is trained."""

    how: Literal["frozen"] = Field("frozen", description="nothing of the tower is trained")
    layer_decay: ClassVar[float] = 1.0


KINDS: dict[str, type[TowerTuning]] = {
    "full": FullTuning,
    "head": HeadTuning,
    "lora": LoraTuning,
    "qlora": QloraTuning,
    "partial": PartialTuning,
    "frozen": FrozenTuning,
}
LOW_RANK = ("lora", "qlora")
"""The values of `how` that train low-rank adapters."""


def _spelled_out(value: object) -> object:
    """Expand a bare string to {how: string}. A mapping without `how` gets `how: full`."""
    if isinstance(value, str):
        if value not in WAYS:
            raise invalid(f"{value!r}{nearest(value, WAYS)}")
        return {"how": value}
    if not isinstance(value, Mapping | TowerTuning):
        raise invalid(f"{value!r} is not one of {', '.join(WAYS)}")
    return {"how": "full", **value} if isinstance(value, Mapping) else value


AnyTuning: TypeAlias = FullTuning | HeadTuning | LoraTuning | QloraTuning | PartialTuning | FrozenTuning

Tuning = Annotated[
    FullTuning | HeadTuning | LoraTuning | QloraTuning | PartialTuning | FrozenTuning,
    Field(discriminator="how"),
    BeforeValidator(_spelled_out, json_schema_input_type=How | AnyTuning),
]
"""Type of the tuning of one tower; the key `how` decides which class validates it."""


def _one_or_towers(value: object) -> object:
    if not isinstance(value, str | Mapping | TowerTuning):
        raise invalid(f"Input should be a valid string (got {value!r})")
    return value


def _shape(value: object) -> str:
    return "<towers>" if isinstance(value, Mapping) and "how" not in value else "<one>"


TuneBlock = Annotated[
    Annotated[Tuning, Tag("<one>")] | Annotated[dict[str, Tuning], Tag("<towers>")],
    Discriminator(_shape),
    BeforeValidator(_one_or_towers),
]
"""Type of the recipe block `tune:`: one tuning for all trained towers, or a mapping modality -> tuning."""
