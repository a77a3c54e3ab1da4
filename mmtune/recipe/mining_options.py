"""The options of mining, as they stand in a recipe under `mining:`. Imports nothing heavy."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Guards(Strict):
    """What keeps a positive that nobody labelled from being pushed away. Each guard drops candidates, with its name as reason.

    Two rows that both carry a group, and not the same one, are known to differ: with `trust_groups` no guess by score or by
    likeness overrules that (near-identical products are the negatives one wants); such guesses are for rows without a group.
    """

    groups: bool = Field(True, description="never the same group, nor identical content; off: only the own row is a positive")
    trust_groups: bool = Field(True, description="two different groups are known negatives: guesses do not apply to them")
    skip_top: int = Field(0, ge=0, description="drop the first ranks")
    max_score: float | None = Field(None, description="drop a score above this")
    absolute_margin: float | None = Field(None, description="drop a score above positive - margin")
    relative_margin: float | Literal["calibrated"] | None = Field(
        "calibrated", description="drop a score above positive - margin x |positive|; calibrated: on labelled rows"
    )
    near_duplicates: bool = Field(True, description="drop content that is nearly the query's, or nearly its positive's")
    verify_margin: float = Field(0.05, ge=0, description="drop when the verifier says above positive - margin x |positive|")
    verify_top: int = Field(10, ge=1, description="candidates a query that a verifier looks at; the others are not mined then")
    hub_cap: float | None = Field(10.0, gt=0, description="an item serves at most this many times its fair share")


class Siblings(Strict):
    """Candidates by metadata: equal in every column of `same`, different in `other`."""

    same: list[str] = Field(min_length=1)
    other: str | None = None


class Search(Strict):
    """How neighbours are found and with how much memory."""

    method: Literal["auto", "exact", "hnsw", "ivf"] = Field("auto", description="auto: exact up to exact_up_to, then ivf")
    exact_up_to: int = Field(4_000_000, ge=0)
    device: str = Field("auto", description="auto: an accelerator when there is one")
    memory_mb: int = Field(1024, ge=64, description="working memory beside the vectors")
    probes: int = Field(64, ge=1, description="ivf: lists visited; hnsw: the breadth of the search is 4 times this")


class Use(Strict):
    """How mined negatives enter training."""

    columns: int | None = Field(
        None, ge=0, description="negatives a query that join its batch as candidates of its own; default: see `columns_of`"
    )
    confusable: float = Field(0.0, ge=0, le=1, description="share of a batch that is drawn as neighbours of its other rows")


class Overrides(Strict):
    """What a single direction has otherwise: guards by name, and how many and how."""

    direction: str
    guards: dict[str, Any] = Field(default_factory=dict)
    negatives: int | None = Field(None, ge=1)
    window: int | None = Field(None, ge=1)
    sampling: Literal["top", "random", "softmax"] | None = None
    columns: int | None = Field(None, ge=0, description="of `use`: candidates of a cheap modality cost next to nothing")

    @model_validator(mode="after")
    def _known(self) -> "Overrides":
        Guards(**self.guards)
        return self


class MiningOptions(Strict):
    """Options of one mining run; `rounds` and `use` matter to training only."""

    rounds: int = Field(3, ge=1, description="how often training mines again with the weights it has then")
    table: str | None = Field(None, description="a table of one's own, used from the first epoch on instead of mining")
    allow_stale: bool = Field(False, description="use `table` although other weights mined it, or none that it names")
    directions: list[str] | None = Field(None, description='such as "a->b" or "a->a"; default: both ways of every trained pair')
    negatives: int = Field(4, ge=1, description="a query row; a value that several rows share gets so many for each")
    window: int = Field(30, ge=1, description="ranks looked at, known positives not counted")
    sampling: Literal["top", "random", "softmax"] = "top"
    temperature: float = Field(0.05, gt=0, description="of softmax sampling")
    positive: Literal["mean", "min", "max"] = Field("mean", description="which of a query's own positives margins compare with")
    seed: int = 0
    sources: list[Literal["nearest", "lexical", "siblings"]] = Field(["nearest"], min_length=1)
    siblings: Siblings | None = None
    judgments: str | None = Field(None, description="JSONL of human verdicts")
    verifier: str | None = Field(None, description='"package.module:Class" with score(pairs), or a MODEL')
    record: Literal["all", "mined"] = Field("all", description="all: also what was dropped before the last mined")
    guards: Guards = Field(default_factory=Guards)
    search: Search = Field(default_factory=Search)
    use: Use = Field(default_factory=Use)
    per_direction: list[Overrides] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole(self) -> "MiningOptions":
        if "siblings" in self.sources and self.siblings is None:
            raise ValueError("sources has siblings, but siblings.same names no column")
        return self

    def for_direction(self, name: str) -> "MiningOptions":
        """These options with the overrides of one direction applied."""
        out = self
        for own in self.per_direction:
            if own.direction == name:
                changes: dict[str, Any] = own.model_dump(exclude={"guards", "direction", "columns"}, exclude_none=True)
                if own.columns is not None:
                    changes["use"] = out.use.model_copy(update={"columns": own.columns})
                changes["guards"] = Guards(**{**out.guards.model_dump(), **own.guards})
                out = out.model_copy(update=changes)
        return out
