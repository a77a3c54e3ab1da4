"""What a collection's methods return: frozen dataclasses whose fields are attributes and keys, `r.id` or `r["id"]`.

`to_dict` gives the JSON document that the command line prints; tables (`SearchResponse`, `status.CollectionStatus`) have
`to_pandas`. Results of one job only (status, cost, shared embedding) are defined with it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject

if TYPE_CHECKING:
    import pandas


def to_json(value: object) -> object:
    """`value` with every `CollectionResult`, mapping and sequence in it as plain dicts and lists."""
    if isinstance(value, CollectionResult):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


class CollectionResult:
    """Base of the results. Fields are keys too: `result["id"]`, `dict(result)`, `"id" in result`; a result equals a dict with
    the same content. (It is no `Mapping`, because a field may be called `items`.)"""

    __hash__ = None  # type: ignore[assignment]  # results compare by content, which may be mutable

    def keys(self) -> list[str]:
        """The names of the fields."""
        return [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]  # subclasses are dataclasses

    def __getitem__(self, key: str) -> object:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CollectionResult | Mapping):
            return NotImplemented
        return self.to_dict() == to_json(other)

    def to_dict(self) -> JsonObject:
        """A JSON document with the same keys."""
        return {name: to_json(getattr(self, name)) for name in self.keys()}


# --- searching ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SearchResult(CollectionResult):
    """One item that a search returned.

    score: cosine with the query; in a hybrid search the fused score. modality: whose vectors matched (None: only BM25
    matched). group and meta: the item's own.
    """

    id: str
    score: float
    modality: str | None
    group: str | None
    meta: Mapping[str, object]

    def metadata_value(self, column: str) -> object:
        """The value in a column of the metadata, or of "group"; None when the item has none."""
        value = self.group if column == "group" else self.meta.get(column)
        return None if value == "" else value


@dataclass(frozen=True, eq=False)
class HybridResult(SearchResult):
    """A result of a hybrid search; similarity: the cosine, None when only BM25 found the item."""

    similarity: float | None


@dataclass(frozen=True, eq=False)
class InterleavedResult(SearchResult):
    """A result of an interleaved search; team: "live" or "staged", whose ranking it was drafted from."""

    team: str
    version: str


@dataclass(frozen=True, eq=False)
class SearchResponse(CollectionResult):
    """The results of one query, best first. All of them come from one version, whose name and fingerprint it carries.

    seconds: the time of the search; query: the id of this query, which feedback refers to ("" when it cannot).
    """

    version: str
    fingerprint: str
    results: Sequence[SearchResult] = ()
    seconds: float = 0.0
    query: str = ""

    @property
    def ids(self) -> list[str]:
        """Item ids, best first."""
        return [r.id for r in self.results]

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per result; metadata columns are named `meta.NAME`."""
        import pandas

        rows = [{k: r[k] for k in r if k != "meta"} | {f"meta.{k}": v for k, v in r.meta.items()} for r in self.results]
        return pandas.DataFrame(rows)


# --- changing items and versions -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RejectedItem(CollectionResult):
    """A row that was not taken."""

    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class UpsertResult(CollectionResult):
    """Counts of items: new, changed, same (nothing to do), kept (in the catalog but not in the data), deleted (`prune`).

    behind: {version: why it could not be brought up to date}.
    """

    new: int
    changed: int
    same: int
    kept: int = 0
    deleted: int = 0
    rejected: Sequence[RejectedItem] = ()
    behind: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DeleteResult(CollectionResult):
    """How many of the ids were deleted, how many were unknown; behind: as in `UpsertResult`."""

    deleted: int
    unknown: int
    behind: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class DropResult(CollectionResult):
    """The version whose vectors were removed."""

    dropped: str


@dataclass(frozen=True, eq=False)
class BuildResult(CollectionResult):
    """A new version. vectors, index: by modality; embedded: contents embedded now; reused: contents whose vectors were known.

    loaded: the upsert of the data that were given; live: the live version; next: the command that promotes this one.
    """

    version: str
    fingerprint: str
    items: int
    vectors: Mapping[str, int]
    index: Mapping[str, Mapping[str, object]]
    store: str
    embedded: int
    reused: int
    loaded: UpsertResult | None
    live: str | None
    next: str
    seconds: float


# --- releasing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ItemCheck(CollectionResult):
    """How many items the live and the new version find, and how many only one of them; explained: why that may be."""

    live: int
    new: int
    only_live: int
    only_new: int
    explained: str | None = None


@dataclass(frozen=True, eq=False)
class GateCheck(CollectionResult):
    """The gate's verdict on new against live; scope: which queries and candidates; gate: its settings, as a document.

    directions, slices: {name: document of the change}, as `mmtune compare --json` has them.
    """

    verdict: str
    reason: str
    scope: str | None = None
    gate: JsonObject | None = None
    directions: Mapping[str, JsonObject] = field(default_factory=dict)
    slices: Mapping[str, JsonObject] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PromotionChecks(CollectionResult):
    """What was measured before a promotion. recall: of the index, by modality; None where there was nothing to compare with.

    latency_ms: {"live", "new"} -> {"p50", "p95"} milliseconds of a search.
    """

    recall: Mapping[str, float] = field(default_factory=dict)
    items: ItemCheck | None = None
    latency_ms: Mapping[str, Mapping[str, float]] | None = None
    gate: GateCheck | None = None


@dataclass(frozen=True, eq=False)
class PromotionResult(CollectionResult):
    """Whether `version` is live now; reasons: why not, or what was overridden (forced); previous: the version before it."""

    promoted: bool
    version: str
    previous: str | None
    reasons: Sequence[str] = ()
    checks: PromotionChecks = field(default_factory=PromotionChecks)
    forced: bool = False
    why: str | None = None


@dataclass(frozen=True, eq=False)
class RollbackResult(CollectionResult):
    """`version` is live again; rolled_back: the version that was live; generation: number of the pointer's move."""

    version: str
    rolled_back: str
    generation: int
    why: str | None


@dataclass(frozen=True, eq=False)
class ShadowState(CollectionResult):
    """The version that a fraction of the live searches is repeated on (None: none), since when (UTC, ISO 8601)."""

    version: str | None
    fraction: float
    since: str


@dataclass(frozen=True, eq=False)
class QueryOverlap(CollectionResult):
    """The share of results that live and staged have in common for one query."""

    query: str
    overlap: float


@dataclass(frozen=True, eq=False)
class ShadowReport(CollectionResult):
    """Shadowed searches of `staged` against `live`. overlap: mean share of common results; same_first: share of searches with
    the same first result; rank_change: mean change of rank of common results; *_ms: {"p50", "p95"}; empty_*: searches
    without results. All None until there was a search."""

    live: str | None
    staged: str | None
    searches: int
    errors: int
    dropped: int
    shadowing: ShadowState | None
    overlap: float | None = None
    same_first: float | None = None
    rank_change: float | None = None
    live_ms: Mapping[str, float] | None = None
    empty_live: int | None = None
    staged_ms: Mapping[str, float] | None = None
    empty_staged: int | None = None
    least_alike: Sequence[QueryOverlap] = ()


@dataclass(frozen=True, eq=False)
class Preference(CollectionResult):
    """Clicks on interleaved results. An impression is won by the team with more clicked items; share: of the impressions won by
    either, those won by staged; interval: its 95% interval; prefers: the side that the whole interval lies on, or None."""

    live_version: str | None
    staged_version: str | None
    impressions: int
    clicked: int
    live: int
    staged: int
    ties: int
    share: float | None
    interval: Sequence[float]
    prefers: str | None


@dataclass(frozen=True, eq=False)
class FeedbackExport(CollectionResult):
    """Files that `export_feedback` wrote: judgments, packed rows they are about, pairs to train on (None: none); and how many
    verdicts were exported and how many left out, because their query or item is unknown."""

    judgments: str
    data: str
    pairs: str | None
    verdicts: int
    unused: int
