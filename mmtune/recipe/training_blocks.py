"""The recipe blocks `matryoshka:`, `memory:` and `interpolate:`."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from mmtune.recipe.block import RecipeBlock, invalid


class MatryoshkaConfig(RecipeBlock):
    """Matryoshka representation learning: embeddings that are truncated to their first dimensions are trained, too."""

    dims: list[int] = Field(
        min_length=1, description="dimensions to which embeddings are truncated; the full dimension is always trained, too"
    )
    weights: list[float] | None = Field(
        None, description="loss weight of each entry of `dims`; null: 1 each; the full dimension always has weight 1"
    )

    @model_validator(mode="after")
    def _fit(self) -> "MatryoshkaConfig":
        weights = self.weights if self.weights is not None else [1.0] * len(self.dims)
        if len(weights) != len(self.dims) or min(weights) < 0 or len(set(self.dims)) != len(self.dims):
            raise invalid("dims must be different numbers; weights must be null or have one number (0 or more) per dim")
        return self


class MemoryConfig(RecipeBlock):
    """Cross-batch memory (XBM): a queue with embeddings of earlier batches, which are additional negatives."""

    size: int = Field(ge=1, description="number of embeddings of each modality in the queue")
    start: int = Field(0, ge=0, description="number of steps before the queue is used")


class Interpolate(RecipeBlock):
    """WiSE-FT: after training, interpolate linearly between the weights of the base model (coefficient 0) and of the tuned model
    (coefficient 1). The coefficient is chosen by the scores on `data.val` (domain) and `data.retention`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"general_weight": "retention_weight"}

    coefficients: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [i / 10 for i in range(11)], min_length=2, description="coefficients that are evaluated; one of them is chosen"
    )
    retention_weight: float = Field(
        1.0, ge=0, description="choose the coefficient with the highest domain score + retention_weight x retention score"
    )
    keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="if set, choose instead the best domain score among coefficients whose retention score is at least this "
        "fraction of the base model's",
    )
