"""`data:` of a recipe: what is trained on, what is validated on, and how rows are read."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.sizes import parse_size


def _check_size(value: int | str) -> int | str:
    try:
        parse_size(value, minimum=0)
    except ValueError as e:
        raise invalid(str(e)) from None
    return value


Size = Annotated[int | str, AfterValidator(_check_size)]
"""A number of bytes, or a string such as "256MB" or "2GiB"."""


class TrainingSet(RecipeBlock):
    """One of several training sets, with its weight."""

    path: str = Field(description="DATA: packed shards (a directory, a brace pattern, a URL)")
    weight: float = Field(
        1.0, gt=0, description="2: every row is used twice an epoch; 0.5: half of the rows, different ones in each epoch"
    )


class DataConfig(RecipeBlock):
    """What is trained on, what is validated on, and how rows are read."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"general": "retention"}

    train: str | list[str | TrainingSet] = Field(description="DATA to train on, or a list of training sets with weights")
    val: str | None = Field(None, description="DATA for validation after each epoch; the best checkpoint is chosen on it")
    retention: str | None = Field(
        None, description="DATA of the general domain, whose scores must not fall: evaluated beside val after each epoch"
    )
    workers: int = Field(2, ge=1, description="threads that decode and preprocess ahead of the training step")
    cache: Size = Field("2GB", description="memory for decoded or preprocessed items, reused in later epochs; 0 = off")
    batches: Literal["random", "spread"] = Field(
        "random", description="random: rows are shuffled; spread: rows of one group go to different batches"
    )

    @property
    def training_sets(self) -> list[TrainingSet]:
        """`train` as a list of weighted training sets."""
        entries = self.train if isinstance(self.train, list) else [self.train]
        return [e if isinstance(e, TrainingSet) else TrainingSet(path=e) for e in entries]

    @property
    def cache_bytes(self) -> int:
        """`cache` in bytes."""
        return parse_size(self.cache, minimum=0)

    @field_validator("train")
    @classmethod
    def _not_empty(cls, value: str | list[str | TrainingSet]) -> str | list[str | TrainingSet]:
        if not value:
            raise invalid("name your packed training data: data.train=DIR")
        return value
