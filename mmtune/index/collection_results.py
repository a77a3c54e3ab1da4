"""Result classes of the methods of a collection: frozen dataclasses; fields are also keys, `r.id` or `r["id"]`.

`to_dict` returns the JSON document that `--json` prints. Tabular results (`SearchResponse`, `status.CollectionStatus`) have a
method `to_pandas`. The results of `status`, `plan` and `embed` are defined in the modules of these functions.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject

if TYPE_CHECKING:
    import pandas


def to_json(value: object) -> object:
    """Convert `value` to JSON types: every `CollectionResult` and mapping becomes a dict, every tuple a list."""
    if isinstance(value, CollectionResult):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


class CollectionResult:
    """Base class of the results.

    Fields are also keys: `result["id"]`, `dict(result)`, `"id" in result`. A result equals a dict with the same content. The
    class is not a `Mapping`, because a field may be named `items`.
    """

    __hash__ = None  # type: ignore[assignment]  # results compare by content, which may be mutable

    def keys(self) -> list[str]:
        """Return the names of the fields."""
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
        """Return the result as a JSON document with the same keys."""
        return {name: to_json(getattr(self, name)) for name in self.keys()}


# --- searching ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SearchResult(CollectionResult):
    """One item that a search returned.

    score: cosine similarity to the query; in a hybrid search, the fused score.
    modality: modality of the item's vector that matched; None when only BM25 matched.
    group: the item's group.
    meta: the item's metadata.
    """

    id: str
    score: float
    modality: str | None
    group: str | None
    meta: Mapping[str, object]

    def metadata_value(self, column: str) -> object:
        """Return the item's value in a metadata column, or its group for "group"; None when it has no value."""
        value = self.group if column == "group" else self.meta.get(column)
        return None if value == "" else value


@dataclass(frozen=True, eq=False)
class HybridResult(SearchResult):
    """A result of a hybrid search. similarity: cosine similarity to the query; None when only BM25 found the item."""

    similarity: float | None


@dataclass(frozen=True, eq=False)
class RerankedResult(SearchResult):
    """A re-ranked result. score: the re-ranker's score; first_stage_score: the score of the search."""

    first_stage_score: float


@dataclass(frozen=True, eq=False)
class InterleavedResult(SearchResult):
    """A result of an interleaved search.

    team: "live" or "staged", the ranking that contributed the result.
    version: the version of that ranking.
    """

    team: str
    version: str


@dataclass(frozen=True, eq=False)
class SearchResponse(CollectionResult):
    """The results of one query, best first.

    version, fingerprint: the version that all results come from, and the fingerprint of its model.
    seconds: duration of the search.
    query: id of this query, to be passed to `Collection.feedback`; "" when feedback is not supported for this query.
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
        """Return a DataFrame with one row per result; metadata columns are named `meta.NAME`."""
        import pandas

        rows = [{k: r[k] for k in r if k != "meta"} | {f"meta.{k}": v for k, v in r.meta.items()} for r in self.results]
        return pandas.DataFrame(rows)


# --- changing items and versions -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RejectedItem(CollectionResult):
    """A row that was not upserted, and why."""

    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class UpsertResult(CollectionResult):
    """Counts of items after an upsert.

    new, changed, same: items that were inserted, replaced, or already identical.
    kept: items of the catalog that are not in the data.
    deleted: items that `prune` deleted.
    rejected: rows that could not be upserted.
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
    """The number of ids that were deleted, and of unknown ids. behind: see `UpsertResult`."""

    deleted: int
    unknown: int
    behind: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class DropResult(CollectionResult):
    """The version that was deleted. pending: stores that could not be deleted yet, and why; `mmtune index gc` does it later."""

    dropped: str
    pending: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class BuildResult(CollectionResult):
    """A new version.

    vectors: number of vectors by modality.
    index: index settings by modality.
    store: kind of vector store.
    embedded: number of contents that were embedded now.
    reused: number of contents whose embeddings were cached.
    loaded: result of upserting `data`; None without `data`.
    live: the live version.
    next: the command that promotes the new version.
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
    """Comparison of the items that the live and the new version index.

    live, new: number of items in each.
    only_live, only_new: number of items that only one of them has.
    explained: why they may differ: the versions index different modalities. None when nothing explains a difference.
    """

    live: int
    new: int
    only_live: int
    only_new: int
    explained: str | None = None


@dataclass(frozen=True, eq=False)
class GateCheck(CollectionResult):
    """The verdict of the gate on the new version compared with the live one.

    scope: which queries were searched among which candidates.
    gate: settings of the gate.
    directions, slices: {name: the change of its metrics}, as in the output of `mmtune compare --json`. With a task in the gate:
        {modality: the change of the gate's metric} and {guard: its change}
    """

    verdict: str
    reason: str
    scope: str | None = None
    gate: JsonObject | None = None
    directions: Mapping[str, JsonObject] = field(default_factory=dict)
    slices: Mapping[str, JsonObject] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PromotionChecks(CollectionResult):
    """Measurements before a promotion. A field is None when there was no live version to compare with.

    recall: recall@10 of the index against exact search, by modality.
    latency_ms: {"live" or "new": {"p50", "p95"}}, the search latency in milliseconds.
    """

    recall: Mapping[str, float] = field(default_factory=dict)
    items: ItemCheck | None = None
    latency_ms: Mapping[str, Mapping[str, float]] | None = None
    gate: GateCheck | None = None


@dataclass(frozen=True, eq=False)
class PromotionResult(CollectionResult):
    """The outcome of a promotion.

    promoted: whether `version` was made live.
    previous: the version that was live before the call.
    reasons: why the promotion was refused, or which objections were overridden by force.
    forced: whether objections were overridden.
    """

    promoted: bool
    version: str
    previous: str | None
    reasons: Sequence[str] = ()
    checks: PromotionChecks = field(default_factory=PromotionChecks)
    forced: bool = False
    why: str | None = None


@dataclass(frozen=True, eq=False)
class RollbackResult(CollectionResult):
    """The outcome of a rollback.

    version: the version that is live again.
    rolled_back: the version that was live before the rollback.
    generation: counter of the moves of the live pointer.
    """

    version: str
    rolled_back: str
    generation: int
    why: str | None


@dataclass(frozen=True, eq=False)
class ShadowState(CollectionResult):
    """The state of shadow traffic.

    version: the version on which live searches are repeated; None when there is no shadow traffic.
    fraction: share of the live searches that are repeated.
    since: when it was set (UTC, ISO 8601).
    """

    version: str | None
    fraction: float
    since: str


@dataclass(frozen=True, eq=False)
class QueryOverlap(CollectionResult):
    """The share of results that the live and the staged version have in common for one query."""

    query: str
    overlap: float


@dataclass(frozen=True, eq=False)
class ShadowReport(CollectionResult):
    """Comparison of shadow searches on `staged` with the live searches.

    searches, errors: number of compared searches, and of shadow searches that failed.
    dropped: searches that were not repeated because too many were waiting.
    overlap: mean share of common results.
    same_first: share of searches with the same first result.
    rank_change: mean absolute change of rank of the common results.
    live_ms, staged_ms: {"p50", "p95"}, the search latency in milliseconds.
    empty_live, empty_staged: number of searches without results.
    least_alike: the queries with the smallest overlap.

    The measurements are None when no search has been compared yet.
    """

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
    """Outcome of interleaving. The version with more clicked items wins an impression (one interleaved response).

    impressions, clicked: number of impressions, and of those with a click.
    live, staged, ties: impressions that the live version won, that the staged version won, and ties.
    share: share of the staged version among the impressions that are not ties.
    interval: 95% confidence interval of `share`.
    prefers: "live" or "staged" when the whole interval is on that side of 0.5, else None.
    """

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
    """The files that `export_feedback` wrote.

    judgments: JSONL file of relevance judgments.
    data: packed data with the judged queries and items.
    pairs: packed data of positive pairs to train on; None when there are none.
    verdicts: number of exported judgments.
    unused: number of judgments that were left out because their query or item is unknown.
    """

    judgments: str
    data: str
    pairs: str | None
    verdicts: int
    unused: int
