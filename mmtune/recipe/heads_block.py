"""The recipe block `heads:`: the layers between a tower and the shared space, and how they are initialised.

heads: {image: {init: ridge}}                     # a linear head that maps photos to their captions before the first step
heads: {image: {type: mlp, init: ridge}}          # plus a residual MLP, which starts at zero
heads: {image: {init: cca}, text: {init: cca}}    # one linear head for each of the two towers
"""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from mmtune.recipe.block import RecipeBlock, invalid


class Head(RecipeBlock):
    """The head of one tower. Whether it is trained depends on `tune`: every `how` but frozen trains it."""

    type: Literal["linear", "mlp"] = Field(
        "linear",
        description="linear: one layer; mlp: a linear layer, to which the output of a two-layer MLP is added (residual)",
    )
    hidden: int | None = Field(
        None, ge=1, description="width of the MLP's hidden layer; null: twice the dimension of the shared space"
    )
    init: Literal["random", "ridge", "cca"] = Field(
        "random",
        description="initial weights of the linear layer. random: those of the base model's head, else random ones, or the identity "
        "where no head is needed; ridge: ridge regression from the tower's features to the embeddings of the other modality; cca: "
        "canonical correlation analysis, which needs `init: cca` for both modalities of the pair. Both use the training pairs",
    )
    ridge: float = Field(
        0.1, gt=0, description="regularisation of ridge and cca, relative to the mean variance of the tower's features"
    )
    power: float = Field(
        1.0,
        gt=0,
        le=1,
        description="absolute values of the tower's features are raised to this power before the head, and keep their signs; 0.5 helps "
        "where a few features are much larger than the others, as after a ReLU (Perronnin et al., ECCV 2010); 1: off",
    )
    pairs: int = Field(20000, ge=2, description="number of training pairs that ridge and cca use at most, drawn at random")

    @field_validator("hidden")
    @classmethod
    def _only_mlp(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("type") != "mlp":
            raise invalid("is an option of type: mlp")
        return value


HeadsBlock = dict[str, Head]
"""Type of the recipe block `heads:`, modality -> head."""
