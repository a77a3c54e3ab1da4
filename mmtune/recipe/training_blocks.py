"""`matryoshka:`, `memory:` and `interpolate:` of a recipe."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from mmtune.recipe.block import RecipeBlock, invalid


class MatryoshkaConfig(RecipeBlock):
    """Matryoshka representation learning: prefixes of the vectors are trained to be vectors of their own."""

    dims: list[int] = Field(min_length=1, description="lengths of the prefixes; the full width is always trained too")
    weights: list[float] | None = Field(None, description="loss weight of each dim; default: 1 each, as the full width")

    @model_validator(mode="after")
    def _fit(self) -> "MatryoshkaConfig":
        weights = self.weights if self.weights is not None else [1.0] * len(self.dims)
        if len(weights) != len(self.dims) or min(weights) < 0 or len(set(self.dims)) != len(self.dims):
            raise invalid("name different dims, and as many weights (0 or more) or none")
        return self


class MemoryConfig(RecipeBlock):
    """Cross-batch memory (XBM): vectors of earlier batches are further negatives."""

    size: int = Field(ge=1, description="vectors of each modality in the queue")
    start: int = Field(0, ge=0, description="steps before the queue is used")


class Interpolate(RecipeBlock):
    """WiSE-FT: the weights are interpolated between base and tuned model; coefficient 0 is the base, 1 the tuned model."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"general_weight": "retention_weight"}

    coefficients: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [i / 10 for i in range(11)], min_length=2, description="coefficients that are evaluated"
    )
    retention_weight: float = Field(1.0, ge=0, description="chosen: the highest domain + retention_weight x retention score")
    keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="chosen instead: the best domain score that keeps this share of the base's retention score",
    )
