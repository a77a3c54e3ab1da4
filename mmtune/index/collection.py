"""A collection: items, versions of their embeddings, each pinned to a model, and a pointer to the version that is live.

Use it as `mmtune.Collection(path)`: build, search, compare, promote, roll back.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities as kinds
from mmtune.contracts import JsonObject, Row, Signal
from mmtune.errors import DataError, MmtuneError
from mmtune.index import audit_log, status
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import (
    BuildResult,
    DeleteResult,
    DropResult,
    FeedbackExport,
    InterleavedResult,
    Preference,
    PromotionResult,
    RollbackResult,
    SearchResponse,
    ShadowReport,
    ShadowState,
    UpsertResult,
)
from mmtune.index.feedback.feedback import FeedbackLog
from mmtune.index.feedback.interleave import Interleaving
from mmtune.index.item_catalog import Catalog
from mmtune.index.query.filters import parse
from mmtune.index.query.query import Query
from mmtune.index.query.searcher import Searcher
from mmtune.index.query_content import decode_query
from mmtune.index.release.build import IndexOptions, VersionBuilder
from mmtune.index.release.drop import drop_version
from mmtune.index.release.offline_eval import EvaluationOptions
from mmtune.index.release.promote import Promoter, PromotionOptions
from mmtune.index.release.shadow import ShadowSearches
from mmtune.index.vector_cache import VectorCache
from mmtune.index.version_pool import VersionPool
from mmtune.index.version_updates import VersionUpdates

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.open_version import OpenVersion
    from mmtune.index.pinned_model import ModelSpec
    from mmtune.index.release.cost import CostEstimate
    from mmtune.index.release.offline_eval import GateSpec
    from mmtune.index.status import CollectionStatus, VersionStatus
    from mmtune.model.dual_encoder import Model


class Collection:
    """One directory (see `mmtune.index.collection_layout`). Threads may share a Collection; any number of processes may search
    while one
    writes.

    A search reads the live pointer once, and all its results come from that version. A version is searched only with the model
    that embedded it.

    Parts, for those who need more than the methods: `layout` (files and pointer), `catalog` (items), `pool` (open versions),
    `updates` (brings versions up to date), `searcher`, `feedback_log`, `interleaving`, `shadow_searches`.
    """

    def __init__(self, path: str | Path, *, create: bool = False):
        """Open the collection in directory `path`. create: make an empty one when there is none; else DataError."""
        self.layout = CollectionLayout(path, create)
        self.path = self.layout.path
        self.catalog = Catalog(self.path / "corpus")
        self.pool = VersionPool(self.layout, self.catalog)
        self.updates = VersionUpdates(self.layout, self.catalog, self.pool)
        self.feedback_log = FeedbackLog(self.path)
        self.interleaving = Interleaving(self.layout, self.feedback_log)
        self.searcher = Searcher(self.pool, self.catalog, self.feedback_log)
        self.shadow_searches = ShadowSearches(self.layout, self.pool, self.searcher)
        self._builder = VersionBuilder(self.layout, self.catalog, self.pool, self.updates)
        self._promoter = Promoter(self.layout, self.catalog, self.pool, self.updates)

    # --- building and changing -----------------------------------------------------------------------------------

    def build(
        self,
        model: "ModelSpec",
        data: "Data | str | None" = None,
        *,
        store: str | None = None,
        url: str | None = None,
        index: str = "auto",
        modalities: Sequence[str] | None = None,
        dim: int | None = None,
        search_dim: int | None = None,
        memory_mb: int | None = None,
        prune: bool = False,
        batch_size: int = 64,
        quiet: bool = False,
    ) -> BuildResult:
        """Embed the items with `model` into a new version. The live pointer is not moved: the first version, too, waits for
        `promote`. Killed and called again, it embeds nothing twice.

        data: packed rows that are upserted first (and so reach every version; `prune`: items that they lack are deleted);
        None: the items as they are. store: a kind of store (see `mmtune.index.stores`), url: of its database, index: flat,
        hnsw, ivfpq or auto. modalities: which get an index (default: those that are not language, else all). dim: the first so
        many dimensions of the model, a space of its own; search_dim: search by the first so many dimensions of the vectors,
        re-rank by all; memory_mb: what making an ivfpq index may take beside the ids (both for the faiss store).
        """
        options = IndexOptions(store, url, index, search_dim, memory_mb)
        return self._builder.build(model, data, modalities, dim, options, prune, batch_size, quiet)

    def upsert(self, data: "Data | str | Iterable[Row]", *, quiet: bool = True) -> UpsertResult:
        """Insert or replace items by id, in the catalog and in every version (live, staged, and those to roll back to).

        data: packed rows (their content stays in the shards), or rows with their content (which the collection stores).
        """
        return self.updates.upsert(data, prune=False, quiet=quiet)

    def delete(self, ids: Sequence[str]) -> DeleteResult:
        """Remove items by id, from the catalog and from every version."""
        return self.updates.delete(ids)

    def drop(self, version: str, why: str | None = None) -> DropResult:
        """Remove a version and its vectors for good. DataError for the live version. Its pinned model stays."""
        return drop_version(self.layout, self.pool, version, why)

    # --- searching -----------------------------------------------------------------------------------------------

    def search(
        self,
        *,
        k: int = 10,
        where: str | None = None,
        version: str | None = None,
        hybrid: bool = False,
        item: str | None = None,
        target: Sequence[str] | None = None,
        group_by: str | None = None,
        **query: Signal,
    ) -> SearchResponse:
        """The k best items for one value, `search(MODALITY=value)`, or for an `item` by id, which is itself left out.

        where: a filter over metadata, e.g. "category = 'Apple'"; version: another than the live one; target: only results of
        these modalities' indexes; hybrid: fused with BM25 over the items' captions and metadata (the value must be of
        language); group_by: "group" or a column of metadata: one result for each of its values, the best item (for an `item`,
        its own value is left out, too).
        """
        if len(query) + (item is not None) != 1:
            raise DataError(
                f"search: one value of {', '.join(kinds.names())}, or an item; got {len(query) + (item is not None)}"
            )
        opened, condition = self.pool.open(version), parse(where) if where else None
        begin = time.perf_counter()  # opening is no part of a search
        modality, content = "", None
        for modality, value in query.items():
            opened.require_tower(modality)
            content = decode_query(modality, value)
        targets = tuple(target) if target else None
        one = Query(modality, content, item, k, condition, targets, hybrid and item is None, group_by)
        (response,) = self.search_many([one], version, begin)
        if isinstance(response, MmtuneError):
            raise response
        return response

    def search_many(
        self, queries: Sequence[Query], version: str | None = None, begin: float | None = None
    ) -> list[SearchResponse | MmtuneError]:
        """As `search`, for many queries of one version in shared passes: each has its response, or its own error.

        begin: when the search began (`time.perf_counter`), if that was before this call.
        """
        responses = self.searcher.search(queries, version, begin)
        if version is None:
            for query, response in zip(queries, responses, strict=True):
                if query.nearest_only and not isinstance(response, MmtuneError):
                    self.shadow_searches.offer(response, query)
        return responses

    def search_vectors(
        self,
        vectors: np.ndarray,
        fingerprint: str,
        k: int = 10,
        *,
        where: str | None = None,
        version: str | None = None,
        target: Sequence[str] | None = None,
    ) -> list[SearchResponse]:
        """The k best items for each of the unit vectors [Q, D] that the model `fingerprint` made. ModelError when that is not
        the version's own model; DataError for vectors that are not of length 1, which no model made."""
        condition = parse(where) if where else None
        return self.searcher.search_vectors(vectors, fingerprint, k, condition, version, target)

    def value(self, id: str, modality: str) -> bytes | None:
        """An item's original value; None when there is no such item, or it has no such value."""
        item = self.catalog.items([id]).get(id)
        return self.catalog.read(item, modality) if item and modality in item.contents else None

    # --- releasing -----------------------------------------------------------------------------------------------

    def promote(
        self,
        version: str,
        *,
        gate: "GateSpec" = None,
        queries: "Data | str | None" = None,
        force: bool = False,
        why: str | None = None,
        qrels: "str | Path | None" = None,
        retention: "Data | str | None" = None,
        slices: Sequence[str] = (),
        min_recall: float = 0.95,
        max_slowdown: float = 2.0,
        batch_size: int = 64,
    ) -> PromotionResult:
        """Make `version` live when it passes the checks (see `mmtune.index.release.promote`).

        queries: held-out data for the gate; without it nothing is promoted over a live version of another model, except by
        `force` with a reason `why`. gate, qrels, retention, slices: as in `mmtune.compare`; min_recall: of the index against
        exact search; max_slowdown: times the live version's median latency.
        """
        from mmtune.data.shards.dataset import open_data

        data, other = (open_data(d) if isinstance(d, str) else d for d in (queries, retention))
        evaluation = EvaluationOptions(gate, qrels, other, slices, batch_size)
        return self._promoter.promote(version, data, PromotionOptions(evaluation, min_recall, max_slowdown, force, why))

    def rollback(self, why: str | None = None) -> RollbackResult:
        """Make the version that was live before live again, at once: it has been kept up to date."""
        return self._promoter.rollback(why)

    def shadow(self, version: str | None, fraction: float | None = None) -> ShadowState:
        """From now on, in every process, repeat a fraction of the live searches on `version`, in the background; None: stop.

        fraction: default the one that is set for this version, else 0.1.
        """
        return self.shadow_searches.start(version, fraction)

    def shadow_report(self, version: str | None = None) -> ShadowReport:
        """Shadowed searches against the live ones: overlap, change of rank, latency, empty responses."""
        return self.shadow_searches.report(version)

    def interleave(self, version: str, *, k: int = 10, rng: random.Random | None = None, **query: Signal) -> SearchResponse:
        """One list drafted from the live and the staged results in turn. Clicks on it (`feedback` with the response's `query`)
        show which version is preferred."""
        teams = self.interleaving.teams(version)
        responses = {team: self.search(k=k, version=name, **query) for team, name in teams.items()}
        rankings, query_id = {team: r.ids for team, r in responses.items()}, responses["live"].query
        impression, drafted = self.interleaving.draft(teams, rankings, query_id, k, rng or random.Random())
        by_id = {team: {r.id: r for r in response.results} for team, response in responses.items()}
        results = []
        for id, team in drafted:
            r = by_id[team][id]
            results.append(InterleavedResult(r.id, r.score, r.modality, r.group, r.meta, team, teams[team]))
        seconds = sum(r.seconds for r in responses.values())
        return SearchResponse("|".join(teams.values()), "", results, seconds, impression)

    def preference(self, version: str | None = None) -> Preference:
        """Wins of the staged version over the live one in clicked interleaved responses, with an interval."""
        return self.interleaving.preference(version)

    def feedback(self, event: Mapping[str, object]) -> JsonObject:
        """Log {"query": a response's `query`, "item": id, "kind": "click" | "match" | "not_a_match"}; returns the logged
        line."""
        return self.feedback_log.add(event)

    def export_feedback(self, out: str | Path) -> FeedbackExport:
        """Write judgments and the rows they are about, for `mmtune eval --qrels` and the next round of mining."""
        return self.feedback_log.export(self.catalog, Path(out))

    # --- looking -------------------------------------------------------------------------------------------------

    @property
    def live(self) -> str | None:
        """The name of the live version."""
        return self.pool.live

    @property
    def open_versions(self) -> set[str]:
        """The versions that are open, which therefore answer at once."""
        return self.pool.names

    def open(self, version: str | None = None) -> "OpenVersion":
        """A version (default: the live one), verified when it is opened first. ModelError or DataError say what is wrong."""
        return self.pool.open(version)

    def vector_cache(self, fingerprint: str, dim: int) -> VectorCache:
        """The vectors by content that one model made."""
        return self.pool.vector_cache(fingerprint, dim)

    def staged(self) -> str | None:
        """The newest version, when it is newer than the live one: it waits to be promoted."""
        names, live = self.layout.versions(), self.live
        return names[-1] if names and (live is None or int(names[-1][1:]) > int(live[1:])) else None

    def versions(self) -> "list[VersionStatus]":
        """Every version, oldest first: its record, what it lacks, its gate, and whether it is live."""
        return status.version_statuses(self.layout, self.catalog)

    def status(self) -> "CollectionStatus":
        """The live version and since when, every version with fingerprint, counts and gate, the items, the shadowed version."""
        return status.collection_status(self.layout, self.catalog, self.shadow_searches.active())

    def journal(self) -> list[JsonObject]:
        """The audit log: who did what, when and why, oldest first."""
        return audit_log.read(self.layout)

    def plan(
        self,
        model: "Model | str | Path",
        data: "Data | str | None" = None,
        items: int | None = None,
        price_per_hour: float | None = None,
        *,
        modalities: Sequence[str] | None = None,
        dim: int | None = None,
        sample: int = 64,
        batch_size: int = 64,
    ) -> "CostEstimate":
        """Hours, bytes and price of embedding the collection's items, or `items` like the rows of `data`, measured on a
        sample."""
        from mmtune.index.release.cost import CatalogSource, DataSource, estimate_cost, load_for_cost

        loaded = load_for_cost(model, dim)
        if data is not None:
            rows = DataSource(data, loaded, batch_size)
            return estimate_cost(loaded, rows, items, price_per_hour, modalities, sample)
        cache = self.vector_cache(loaded.fingerprint, loaded.dim)
        source = CatalogSource(self.catalog, cache, loaded, batch_size)
        return estimate_cost(loaded, source, items, price_per_hour, modalities, sample)

    def close(self) -> None:
        """Wait for shadow searches, release the handles."""
        self.shadow_searches.close()
        self.pool.close()
        self.catalog.close()

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        versions = ", ".join(self.layout.versions()) or "no versions"
        return f"Collection({str(self.path)!r}: {len(self.catalog)} items, {versions}, live {self.live})"
