"""The terms of `objective:` whose loss compares embeddings by class labels: class-proxy and ranking losses.

objective:
  - {loss: "pml:ProxyAnchorLoss", pairs: [[image, image]], label: sku, margin: 0.1, proxy_lr: 0.05}
  - {loss: "pml:TripletMarginLoss", miner: {name: "pml:MultiSimilarityMiner", epsilon: 0.2}}
  - {loss: "pml:ArcFaceLoss", label: sku, classes: skus.txt}
"""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, JsonValue

from mmtune.recipe.block import Number, RecipeBlock, invalid


def _not_negative(value: float) -> float:
    if value < 0:
        raise invalid(f"{value} is negative; weights must be 0 or more")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise invalid(f"{value} is not positive")
    return value


TermWeight = Annotated[Number, AfterValidator(_not_negative)]
"""The weight of a term in the sum of all terms."""
Positive = Annotated[Number, AfterValidator(_positive)]
"""A number above 0."""


class ClassLabelTerm(RecipeBlock):
    """A loss on embeddings and class labels: any loss of pytorch-metric-learning as `pml:NAME`, or a class of your own.

    Keys other than these are arguments of the loss's class, e.g. `margin`. The number of classes and the dimension of the proxies
    follow from the training data and the model. For a pair of one modality with itself, e.g. `[[image, image]]`, the loss gets the embeddings of this modality; for
    a pair of two, the embeddings of both with the same labels.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    __pydantic_extra__: dict[str, JsonValue]

    loss: str = Field(description="pml:NAME of a loss of pytorch-metric-learning", pattern="^pml:")
    weight: TermWeight = Field(1.0, description="factor of this loss in the sum of all losses")
    pairs: list[tuple[str, str]] | None = Field(
        None, description="pairs of modalities to which this loss applies; null: all pairs of the recipe"
    )
    label: str = Field(
        "group", description="metadata column with the class of each row; rows without a value are left out of this loss"
    )
    classes: list[str | int | float | bool] | str | None = Field(
        None,
        description="the classes in the order of their numbers: a list, or a text file with one class a line; a row of another class is "
        "an error, or with data.skip_bad left out of this loss. null: the different values of `label` in the training data, which are "
        "counted before the first step",
    )
    miner: str | dict[str, JsonValue] | None = Field(
        None,
        description="miner of pytorch-metric-learning that selects pairs or triplets of the batch: pml:NAME, or {name: pml:NAME} with "
        "its arguments; null: all",
    )
    proxy_lr: Positive | None = Field(
        None, description="peak learning rate of the loss's own parameters (class proxies); null: 100 x train.lr"
    )

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keys other than the fields above, as arguments for the loss's class."""
        return dict(self.__pydantic_extra__)


class OwnClassLabelTerm(ClassLabelTerm):
    """A `ClassLabelTerm` whose loss is a class of the user's own."""

    loss: str = Field(description="package.module:Class, or a registered name")
