"""`teachers:` of a recipe: models, scorers or files of scores that distillation and guides look at.

teachers:
  big: {model: hf:DIR}                                    vectors of every row
  judge: {scorer: cross_encoder, options: {model: DIR}}   a score a pair
  labels: {scores: scores.parquet}                        a file with query_id, item_id, score
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Field, JsonValue, Tag

from mmtune.recipe.block import RecipeBlock
from mmtune.runtime.plugins import nearest


class TeacherBlock(RecipeBlock):
    """Base of the kinds of teacher."""

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The nearest key of this kind of teacher."""
        return f"there is no such key{nearest(key, list(cls.model_fields))}"


class ModelTeacher(TeacherBlock):
    """A dual encoder: its vectors of the training rows are computed once and stored."""

    model: str = Field(description="MODEL string of the teacher")
    out: str | None = Field(None, description="folder of the stored vectors; default: teachers/ beside the shards")
    batch_size: int = Field(64, ge=1, description="of the embedding")


class ScorerTeacher(TeacherBlock):
    """A scorer of pairs, e.g. a cross encoder: its scores are computed once and stored."""

    scorer: str = Field(description="cross_encoder, matcher, a registered name, or package.module:Class with score(pairs)")
    options: dict[str, JsonValue] = Field({}, description="keyword arguments of the scorer's class")
    candidates: str = Field("own", description="pairs to score: own, all, or the path of a negatives table")
    out: str | None = Field(None, description="folder of the stored scores; default: teachers/ beside the shards")


class ScoresTeacher(TeacherBlock):
    """A file of scores."""

    scores: str = Field(description=".parquet, .jsonl, .csv or .tsv with query_id, item_id, score (and direction)")


def _kind(value: object) -> str | None:
    keys = value if isinstance(value, Mapping) else vars(value)
    if not keys:
        return "<model>"  # its `model: ???` is still to be filled in
    return next((f"<{kind}>" for kind in ("model", "scorer", "scores") if kind in keys), None)


Teacher = Annotated[
    Annotated[ModelTeacher, Tag("<model>")]
    | Annotated[ScorerTeacher, Tag("<scorer>")]
    | Annotated[ScoresTeacher, Tag("<scores>")],
    Discriminator(
        _kind,
        custom_error_type="recipe_value",
        custom_error_message="say what it is: model: MODEL, scorer: NAME, or scores: FILE",
    ),
]
"""One teacher, typed by which of `model`, `scorer` and `scores` it names."""
