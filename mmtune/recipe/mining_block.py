"""`mining:` of a recipe: hard negatives, and the guards against false ones."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mmtune.recipe.block import RecipeBlock, invalid


class Guards(RecipeBlock):
    """Guards against false negatives. Each drops candidates, with its name as the reason in the audit.

    Two rows that both carry a group, and not the same one, are known to differ: with `trust_groups` no guess by score or by
    likeness overrules that (near-identical products are the negatives one wants); such guesses are for rows without a group.
    """

    groups: bool = Field(True, description="drop the same group and identical content; off: only the own row is a positive")
    trust_groups: bool = Field(True, description="two different groups are known negatives: guesses do not apply to them")
    skip_top: int = Field(0, ge=0, description="drop the first ranks")
    max_score: float | None = Field(None, description="drop a score above this")
    absolute_margin: float | None = Field(None, description="drop a score above positive - margin")
    relative_margin: float | Literal["calibrated"] | None = Field(
        "calibrated", description="drop a score above positive - margin x |positive|; calibrated: on labelled rows"
    )
    near_duplicates: bool = Field(True, description="drop near duplicates of the query or of its positive")
    verify_margin: float = Field(0.05, ge=0, description="drop when the verifier scores above positive - margin x |positive|")
    verify_top: int = Field(10, ge=1, description="candidates a query that the verifier scores; the others are not mined then")
    extra: list[str] = Field(default_factory=list, description="further guards: registered names, or package.module:Class")
    hub_cap: float | None = Field(10.0, gt=0, description="an item is mined at most this many times its fair share")


class GuardOverrides(Guards):
    """Guards that one direction overrides; those that are not given stay as they are."""

    @property
    def given(self) -> dict[str, object]:
        """The guards that are given, by name."""
        return {k: getattr(self, k) for k in sorted(self.model_fields_set)}

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {k: v for k, v in handler(self).items() if k in self.model_fields_set}


class SiblingOptions(RecipeBlock):
    """Candidates by metadata: equal in every column of `same`, different in `other`."""

    same: list[str] = Field(min_length=1, description="metadata columns in which query and candidate agree")
    other: str | None = Field(None, description="metadata column in which they differ")


class SearchOptions(RecipeBlock):
    """Nearest-neighbour search of the candidates."""

    method: Literal["auto", "exact", "hnsw", "ivf"] = Field("auto", description="auto: exact up to exact_up_to, then ivf")
    exact_up_to: int = Field(4_000_000, ge=0, description="candidates up to which auto searches exactly")
    device: str = Field("auto", description="auto: an accelerator when there is one")
    memory_mb: int = Field(1024, ge=64, description="working memory beside the vectors")
    probes: int = Field(64, ge=1, description="ivf: lists visited (nprobe); hnsw: efSearch is 4 times this")


class NegativeUse(RecipeBlock):
    """How mined negatives enter training."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"columns": "negatives_per_query"}

    negatives_per_query: int | None = Field(
        None,
        ge=0,
        description="mined negatives a query that join its batch as candidates; default: 4 where candidates are text, which is "
        "cheap to encode, 0 elsewhere, 1 everywhere when no direction has text to find",
    )
    confusable: float = Field(0.0, ge=0, le=1, description="share of a batch that is drawn as neighbours of its other rows")


class DirectionOptions(RecipeBlock):
    """What a single direction has differently."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"columns": "negatives_per_query"}

    direction: str = Field(description='such as "a->b"')
    guards: GuardOverrides = Field(default_factory=GuardOverrides, description="guards that differ")
    negatives: int | None = Field(None, ge=1, description="as `mining.negatives`")
    window: int | None = Field(None, ge=1, description="as `mining.window`")
    sampling: Literal["top", "random", "softmax"] | None = Field(None, description="as `mining.sampling`")
    negatives_per_query: int | None = Field(None, ge=0, description="as `mining.use.negatives_per_query`")


class MiningOptions(RecipeBlock):
    """Options of one mining run; `rounds` and `use` matter to training only."""

    rounds: int = Field(3, ge=1, description="how often training mines again, with the weights it has then")
    table: str | None = Field(None, description="a table of negatives of your own, used from the first epoch instead of mining")
    allow_stale: bool = Field(False, description="use `table` although it was mined with other weights, or names none")
    directions: list[str] | None = Field(None, description='such as "a->b" or "a->a"; default: both ways of every trained pair')
    negatives: int = Field(4, ge=1, description="mined a query row; a value that several rows share gets so many for each")
    window: int = Field(30, ge=1, description="ranks that are considered, known positives not counted")
    sampling: Literal["top", "random", "softmax"] = Field("top", description="which candidates of the window are taken")
    temperature: float = Field(0.05, gt=0, description="of softmax sampling")
    positive: Literal["mean", "min", "max"] = Field("mean", description="which of a query's own positives margins compare with")
    seed: int = Field(0, description="of random and softmax sampling")
    sources: list[str] = Field(
        ["nearest"],
        min_length=1,
        description="where candidates come from: nearest (vectors), lexical (BM25), siblings (metadata), a registered name, or "
        "package.module:Class",
    )
    siblings: SiblingOptions | None = Field(None, description="columns of the source `siblings`")
    judgments: str | None = Field(None, description="JSONL of human verdicts on pairs")
    verifier: str | None = Field(None, description="name of a scorer, package.module:Class with score(pairs), or a MODEL")
    record: Literal["all", "mined"] = Field("all", description="all: also what was dropped before the last mined")
    guards: Guards = Field(default_factory=Guards, description="against false negatives")
    search: SearchOptions = Field(default_factory=SearchOptions, description="nearest-neighbour search")
    use: NegativeUse = Field(default_factory=NegativeUse, description="how mined negatives enter training")
    per_direction: list[DirectionOptions] = Field(default_factory=list, description="options that one direction overrides")

    @model_validator(mode="after")
    def _siblings_have_columns(self) -> "MiningOptions":
        if "siblings" in self.sources and self.siblings is None:
            raise invalid("sources has siblings, but siblings.same names no column")
        return self

    def for_direction(self, name: str) -> "MiningOptions":
        """These options with the overrides of one direction applied."""
        out = self
        for own in self.per_direction:
            if own.direction == name:
                fields = own.model_fields_set & {"negatives", "window", "sampling"}
                changes: dict[str, object] = {k: v for k in fields if (v := getattr(own, k)) is not None}
                if own.negatives_per_query is not None:
                    changes["use"] = out.use.model_copy(update={"negatives_per_query": own.negatives_per_query})
                changes["guards"] = Guards.model_validate({**out.guards.model_dump(), **own.guards.given})
                out = out.model_copy(update=changes)
        return out
