"""The recipe block `retention:`: how much a tuned model may lose on data that it must not forget.

retention: {data: data/general, at_most: 0.02}
"""

from pydantic import Field

from mmtune.recipe.block import RecipeBlock


class Retention(RecipeBlock):
    """A forgetting budget. It holds during training (embedding preservation), in the choice of the checkpoint and of the
    interpolation with the base model, and as a guard of the gate."""

    data: str = Field(description="packed data that the model must not get worse on; the same as data.retention")
    at_most: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="largest allowed loss of `train.metric` on these data against the base model; the upper end of the loss's 95% "
        "interval counts",
    )
    cluster: str | None = Field(
        None,
        description="metadata column of `data`, e.g. the recording or machine, whose values the interval resamples; null: groups, and "
        "rows of equal content",
    )
    weight: float = Field(
        1.0,
        ge=0,
        description="weight of the embedding-preservation loss: mean of 1 - cosine to the base model's embeddings of rows of "
        "`preserve`; 0: off",
    )
    preserve: str | None = Field(
        None,
        description="packed data of the embedding-preservation loss; null: `data`, so that the measured rows are also preserved "
        "(give other rows for an unbiased measurement)",
    )
    batch_size: int = Field(32, ge=1, description="rows of `preserve` in each optimizer step, for each modality")
