"""`tune:` of a recipe: how much of each tower is trained.

tune: lora                                       every trained tower alike: full, head, lora, qlora, partial, frozen
tune: {how: partial, blocks: 2}                  with options
tune: {image: lora, text: {how: full, layer_decay: 0.8}}      one entry a tower
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.plugins import nearest

How = Literal["full", "head", "lora", "qlora", "partial", "frozen"]
WAYS: tuple[str, ...] = get_args(How)


class TowerTuning(RecipeBlock):
    """How one tower is trained; the base of the variants."""

    head_first: float = Field(0.0, ge=0, description="LP-FT: epochs in which only a head is trained, before those of `train`")
    head_lr: float | None = Field(None, gt=0, description="learning rate of the head_first epochs; default: train.lr")

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """Which `how` the key goes with, if it is an option of another one; else the nearest key."""
        how = cls.model_fields["how"].default
        if goes_with := [h for h, kind in KINDS.items() if key in kind.model_fields]:
            return f"goes with {', '.join(goes_with)}; it does nothing for how: {how}"
        return f"unknown{nearest(key, [n for kind in KINDS.values() for n in kind.model_fields])}"

    @field_validator("head_lr")
    @classmethod
    def _rate_has_epochs(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value and not info.data.get("head_first", 1):
            raise invalid("is the rate of the epochs of head_first; add that, or set train.lr")
        return value


class FullTuning(TowerTuning):
    """All weights of the tower are trained."""

    how: Literal["full"] = Field("full", description="all weights of the tower")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer as a share of the next one's")


class HeadTuning(TowerTuning):
    """A linear head behind the frozen tower."""

    how: Literal["head"] = Field("head", description="a linear head behind the frozen tower")
    layer_decay: ClassVar[float] = 1.0


class AdapterTuning(TowerTuning):
    """Low-rank adapters in the tower's blocks, merged after training; the options of lora and qlora."""

    how: Literal["lora", "qlora"]
    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float | None = Field(None, gt=0, description="the adapter's factor is alpha / rank; default: 2 x rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in front of the adapters")
    targets: list[str] | None = Field(
        None, description="ends of layer names, e.g. [q_proj, v_proj]; default: all in the blocks"
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a block as a share of the next one's")


class LoraTuning(AdapterTuning):
    """Low-rank adapters (LoRA)."""

    how: Literal["lora"] = Field("lora", description="low-rank adapters, merged after training")


class QloraTuning(AdapterTuning):
    """As lora, with the frozen weights held in 4 bits."""

    how: Literal["qlora"] = Field("qlora", description="as lora, the frozen weights in 4 bits")


class PartialTuning(TowerTuning):
    """The last blocks, or the normalisation layers."""

    how: Literal["partial"] = Field("partial", description="the last blocks and what follows them, or the norms")
    blocks: int | None = Field(None, ge=1, description="number of last blocks that are trained; default: 2, with norms: 0")
    norms: bool = Field(False, description="train the normalisation layers")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer as a share of the next one's")


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
"""The ways that train adapters."""


def _spelled_out(value: object) -> object:
    """A bare way stands for {how: way}; one without `how` is the full one."""
    if isinstance(value, str):
        if value not in WAYS:
            raise invalid(f"{value!r}{nearest(value, WAYS)}")
        return {"how": value}
    if not isinstance(value, Mapping | TowerTuning):
        raise invalid(f"{value!r} is none of {', '.join(WAYS)}")
    return {"how": "full", **value} if isinstance(value, Mapping) else value


AnyTuning: TypeAlias = FullTuning | HeadTuning | LoraTuning | QloraTuning | PartialTuning | FrozenTuning

Tuning = Annotated[
    FullTuning | HeadTuning | LoraTuning | QloraTuning | PartialTuning | FrozenTuning,
    Field(discriminator="how"),
    BeforeValidator(_spelled_out, json_schema_input_type=How | AnyTuning),
]
"""How one tower is trained, typed by `how`."""


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
"""`tune:` of a recipe: one tuning for every trained tower, or one a tower by its modality."""
