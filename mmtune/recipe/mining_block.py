"""The recipe block `mining:`: mining of hard negatives, and guards against false negatives."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mmtune.recipe.block import RecipeBlock, invalid


class Guards(RecipeBlock):
    """Guards against false negatives. Each guard drops candidates that may be unlabelled positives of the query.

    The audit of a mining run reports which guard dropped a candidate. If query and candidate have different groups, they are known
    to show different things; with `trust_groups`, guards that only guess by score or similarity then do not apply. This keeps
    near-identical products as hard negatives.
    """

    groups: bool = Field(
        True,
        description="true: candidates with the group or the content of the query's row count as positives; false: only the query's "
        "own row is a positive",
    )
    trust_groups: bool = Field(
        True, description="rows with different groups are known negatives: guards by score or similarity do not drop them"
    )
    skip_top: int = Field(0, ge=0, description="drop this many top-ranked candidates of the nearest-neighbour search")
    max_score: float | None = Field(None, description="drop candidates that score above this; null: no limit")
    absolute_margin: float | None = Field(
        None, description="drop candidates that score above p - margin, where p is the score of the query's positive; null: off"
    )
    relative_margin: float | Literal["calibrated"] | None = Field(
        "calibrated",
        description="drop candidates that score above p - margin x |p|, where p is the score of the query's positive; calibrated: "
        "choose the margin on rows with groups; null: off",
    )
    near_duplicates: bool = Field(True, description="drop near-duplicates of the query and of its positive")
    verify_margin: float = Field(
        0.05,
        ge=0,
        description="drop candidates that the verifier scores above p - margin x |p|, where p is its score of the query's positive",
    )
    verify_top: int = Field(
        10, ge=1, description="number of candidates per query that the verifier scores; with a verifier only these can be mined"
    )
    extra: list[str] = Field(
        default_factory=list, description="guards of your own: registered names, or package.module:Class strings"
    )
    hub_cap: float | None = Field(
        10.0,
        gt=0,
        description="an item is mined at most this many times as often as the average candidate; null: no cap",
    )


class GuardOverrides(Guards):
    """Guards for a single direction. Guards that are not set here keep their value from `mining.guards`."""

    @property
    def given(self) -> dict[str, object]:
        """Name -> value of the guards that are set."""
        return {k: getattr(self, k) for k in sorted(self.model_fields_set)}

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {k: v for k, v in handler(self).items() if k in self.model_fields_set}


class SiblingOptions(RecipeBlock):
    """Options of the candidate source `siblings`: rows with the same metadata as the query, e.g. the same brand."""

    same: list[str] = Field(min_length=1, description="metadata columns in which query and candidate must be equal")
    other: str | None = Field(None, description="metadata column in which query and candidate must differ")


class SearchOptions(RecipeBlock):
    """Options of the nearest-neighbour search for candidates."""

    method: Literal["auto", "exact", "hnsw", "ivf"] = Field(
        "auto", description="search method; auto: exact for at most `exact_up_to` candidates, otherwise ivf"
    )
    exact_up_to: int = Field(4_000_000, ge=0, description="method auto: largest number of candidates that is searched exactly")
    device: str = Field("auto", description="torch device, e.g. cpu or cuda; auto: a GPU if there is one")
    memory_mb: int = Field(1024, ge=64, description="limit in MB for working memory, in addition to the embeddings")
    probes: int = Field(
        64, ge=1, description="ivf: number of lists that are searched (faiss nprobe); hnsw: efSearch is 4 x probes"
    )


class NegativeUse(RecipeBlock):
    """How training uses mined negatives."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"columns": "negatives_per_query"}

    negatives_per_query: int | None = Field(
        None,
        ge=0,
        description="number of mined negatives per query that are added to its batch as candidates; null: 4 in directions with "
        "text candidates, which are cheap to encode, and 0 in the others; 1 in all directions if none has text candidates",
    )
    confusable: float = Field(
        0.0, ge=0, le=1, description="fraction of each batch that is filled with nearest neighbours of its other rows"
    )


class DirectionOptions(RecipeBlock):
    """Options for a single retrieval direction. A key that is not set keeps its value from `mining`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"columns": "negatives_per_query"}

    direction: str = Field(description='direction "a->b": queries of modality a, candidates of modality b')
    guards: GuardOverrides = Field(
        default_factory=GuardOverrides, description="guards with another value than in `mining.guards`"
    )
    negatives: int | None = Field(None, ge=1, description="see `mining.negatives`")
    window: int | None = Field(None, ge=1, description="see `mining.window`")
    sampling: Literal["top", "random", "softmax"] | None = Field(None, description="see `mining.sampling`")
    negatives_per_query: int | None = Field(None, ge=0, description="see `mining.use.negatives_per_query`")


class MiningOptions(RecipeBlock):
    """Options of hard-negative mining. `rounds`, `table`, `allow_stale` and `use` have an effect in training only."""

    rounds: int = Field(
        3, ge=1, description="number of times that training mines negatives, each time with its current weights"
    )
    table: str | None = Field(
        None,
        description="Parquet table of negatives, e.g. from `mmtune mine`, which is used from the first epoch instead of mining",
    )
    allow_stale: bool = Field(
        False, description="use `table` even if it was mined with another model than the base model, or names no model"
    )
    directions: list[str] | None = Field(
        None, description='directions to mine, such as "a->b" or "a->a"; null: both directions of every trained pair'
    )
    negatives: int = Field(
        4, ge=1, description="number of negatives to mine per row; a query that occurs in n rows gets n times as many"
    )
    window: int = Field(
        30, ge=1, description="number of top-ranked candidates from which negatives are taken; known positives do not count"
    )
    sampling: Literal["top", "random", "softmax"] = Field(
        "top",
        description="how negatives are taken from the window: top: the highest scores; random: uniformly; softmax: with a "
        "probability that grows with the score",
    )
    temperature: float = Field(0.05, gt=0, description="temperature of softmax sampling")
    positive: Literal["mean", "min", "max"] = Field(
        "mean", description="how margins of guards combine the scores of several positives of a query"
    )
    seed: int = Field(0, description="random seed of random and softmax sampling")
    sources: list[str] = Field(
        ["nearest"],
        min_length=1,
        description="where candidates come from: nearest (embedding search), lexical (BM25), siblings (equal metadata), a registered "
        "name, or package.module:Class",
    )
    siblings: SiblingOptions | None = Field(None, description="metadata columns for the source `siblings`, which needs them")
    judgments: str | None = Field(
        None, description="JSONL file of human judgments: pairs that are known positives or negatives"
    )
    verifier: str | None = Field(
        None,
        description="model that re-scores candidates to drop false negatives: the name of a scorer, package.module:Class with "
        "score(pairs), or a MODEL string; null: none",
    )
    record: Literal["all", "mined"] = Field(
        "all",
        description="rows of the output table: mined: mined negatives only; all: also candidates that were dropped and rank above "
        "the last mined one",
    )
    guards: Guards = Field(default_factory=Guards, description="guards against false negatives")
    search: SearchOptions = Field(default_factory=SearchOptions, description="nearest-neighbour search for candidates")
    use: NegativeUse = Field(default_factory=NegativeUse, description="how training uses mined negatives")
    per_direction: list[DirectionOptions] = Field(default_factory=list, description="options that differ for single directions")

    @model_validator(mode="after")
    def _siblings_have_columns(self) -> "MiningOptions":
        if "siblings" in self.sources and self.siblings is None:
            raise invalid("sources has siblings, but siblings.same names no column")
        return self

    def for_direction(self, name: str) -> "MiningOptions":
        """The options for one direction: these options with the overrides in `per_direction` applied."""
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
