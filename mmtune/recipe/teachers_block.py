"""The recipe block `teachers:`: models, pair scorers or score files that distillation losses and guides use.

teachers:
  big: {model: hf:DIR}                                    # a dual encoder: one embedding per value
  judge: {scorer: cross_encoder, options: {model: DIR}}   # a scorer: one score per pair
  labels: {scores: scores.parquet}                        # a file with the columns query_id, item_id and score
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Field, JsonValue, Tag

from mmtune.recipe.block import RecipeBlock
from mmtune.runtime.plugins import nearest


class TeacherBlock(RecipeBlock):
    """Base class of the kinds of teacher."""

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key, with the most similar key of this kind of teacher."""
        return f"there is no such key{nearest(key, list(cls.model_fields))}"


class ModelTeacher(TeacherBlock):
    """A dual encoder as teacher. Its embeddings of the training rows are computed once, before training, and stored."""

    model: str = Field(description="the teacher, in the form of the recipe key `model`")
    out: str | None = Field(
        None, description="directory for the stored embeddings; null: teachers/ next to the training shards"
    )
    batch_size: int = Field(64, ge=1, description="batch size for computing the embeddings")


class ScorerTeacher(TeacherBlock):
    """A scorer of pairs as teacher, e.g. a cross-encoder. Its scores are computed once, before training, and stored."""

    scorer: str = Field(
        description="cross_encoder, matcher, a registered name, package.module:Class with score(pairs), or the directory of a "
        "cross-encoder that a recipe with `cross_encoder` trained"
    )
    options: dict[str, JsonValue] = Field({}, description="keyword arguments for the scorer's class")
    candidates: str = Field(
        "own",
        description="pairs to score; own: the pair of each row; all: every query with every candidate; or the path of a table of "
        "negatives (own pairs and those of the table)",
    )
    out: str | None = Field(None, description="directory for the stored scores; null: teachers/ next to the training shards")


class ScoresTeacher(TeacherBlock):
    """A file of scores as teacher."""

    scores: str = Field(
        description=".parquet, .jsonl, .csv or .tsv file with the columns query_id, item_id and score, and optionally direction"
    )


def _kind(value: object) -> str | None:
    keys = value if isinstance(value, Mapping) else vars(value)
    if not keys:
        return "<model>"  # the recipe has `model: ???`, which was removed as missing: report the missing key `model`
    return next((f"<{kind}>" for kind in ("model", "scorer", "scores") if kind in keys), None)


Teacher = Annotated[
    Annotated[ModelTeacher, Tag("<model>")]
    | Annotated[ScorerTeacher, Tag("<scorer>")]
    | Annotated[ScoresTeacher, Tag("<scores>")],
    Discriminator(
        _kind,
        custom_error_type="recipe_value",
        custom_error_message="needs one of the keys model: MODEL, scorer: NAME, or scores: FILE",
    ),
]
"""Type of one teacher; which of the keys `model`, `scorer` and `scores` it has decides which class validates it."""
