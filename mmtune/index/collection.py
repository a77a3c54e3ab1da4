"""A collection holds items, several versions of their embeddings, and a pointer to the live version, the one that is searched.

Each version is embedded by one fixed model, which is saved with it. Use a collection as `mmtune.Collection(path)`.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject, Row, Scorer, Signal
from mmtune.errors import MmtuneError
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
from mmtune.index.maintenance.maintenance import Maintenance
from mmtune.index.query.filters import parse
from mmtune.index.query.query import Query
from mmtune.index.query.searcher import Searcher
from mmtune.index.query_content import check_one_query, decode_query
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
    """A collection in one directory (see `mmtune.index.collection_layout` for its files).

    Threads may share a Collection object. Any number of processes may search a collection while one process writes to it.
    All results of one search come from the same version, even if another version is promoted meanwhile. A version is searched
    only with queries that were embedded by the version's own model.

    Attributes for advanced use:
        layout: the files and the live pointer.
        catalog: the items.
        pool: the open versions.
        updates: brings all versions up to date after a change of the items.
        maintenance: erase, backup, clone, gc, compact, verify and repair.
        searcher, feedback_log, interleaving, shadow_searches: see their classes.
    """

    def __init__(self, path: str | Path, *, create: bool = False, quiet: bool = True):
        """Open the collection in directory `path`.

        create: create an empty collection if there is none; otherwise a missing collection raises DataError.
        quiet: show no progress of unfinished work that is done now, such as the tables of a restored or cloned collection.
        """
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
        self.maintenance = Maintenance(self.updates)
        self.maintenance.finish_pending(quiet)

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
        """Embed the items with `model` into a new version.

        The new version is not live, not even the first one, until it is promoted with `promote`. Resumable: after an
        interruption, call it again; finished embeddings are reused.

        model: a model in memory, a MODEL string, or one MODEL string per tower.
        data: packed rows to upsert first, in all versions. None means to embed the items that the collection has.
        store: kind of vector store (see `mmtune.index.stores`); default: that of the newest version, else faiss.
        url: URL of the store's database.
        index: flat (exact), hnsw, ivfpq or auto.
        modalities: modalities to index; default: all that are not text, or text if the items have nothing else.
        dim: truncate the model's embeddings to this many dimensions (Matryoshka).
        search_dim: search with the first `search_dim` dimensions, then re-rank with all (faiss store only).
        memory_mb: memory limit for building an ivfpq index, in MB; the ids are not counted (faiss store only).
        prune: delete the items that are not in `data`.
        batch_size: items per forward pass of the model.
        """
        options = IndexOptions(store, url, index, search_dim, memory_mb)
        return self._builder.build(model, data, modalities, dim, options, prune, batch_size, quiet)

    def upsert(self, data: "Data | str | Iterable[Row]", *, quiet: bool = True) -> UpsertResult:
        """Insert or replace items by id, in the catalog and in all versions: live, staged, and earlier ones.

        data: packed rows, whose content stays in the shards; or an iterable of `Row`, whose content the collection stores.
        """
        return self.updates.upsert(data, prune=False, quiet=quiet)

    def delete(self, ids: Sequence[str]) -> DeleteResult:
        """Delete items by id, from the catalog and from all versions."""
        return self.updates.delete(ids)

    def drop(self, version: str, why: str | None = None) -> DropResult:
        """Delete a version and its vectors permanently; its model is kept. Raises DataError for the live version."""
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
        rerank: Scorer | str | None = None,
        rerank_depth: int = 50,
        **query: Signal,
    ) -> SearchResponse:
        """Search for the k best items, by a query value (`search(text="red shoe")`) or by the stored vector of an item.

        where: metadata filter, e.g. "category = 'Apple'" (see `mmtune.index.query.filters`).
        version: version to search; default: the live version.
        hybrid: fuse the results with BM25 over captions and metadata. Needs a text query, or an item with a caption.
        item: id of an item; its stored vector is the query, and the item itself is not returned.
        target: search only the indexes of these modalities; default: all.
        group_by: metadata column, or "group"; keep the best item per value only, and with `item` none of the item's own value.
        rerank: scorer of the first `rerank_depth` results, e.g. a cross-encoder's directory (see `query.rerank.load_rerank`).
        query: one query as MODALITY=value; a value is a file path, bytes, a string for text, or a decoded input.
        """
        check_one_query(query, item)
        opened, condition = self.pool.open(version), parse(where) if where else None
        begin = time.perf_counter()  # the time to open a version is not counted as search time
        modality, content = "", None
        for modality, value in query.items():
            opened.require_tower(modality)
            content = decode_query(modality, value)
        targets = tuple(target) if target else None
        scorer = self.searcher.rerank(rerank, rerank_depth)
        one = Query(modality, content, item, k, condition, targets, hybrid, group_by, scorer)
        (response,) = self.search_many([one], version, begin)
        if isinstance(response, MmtuneError):
            raise response
        return response

    def search_many(
        self, queries: Sequence[Query], version: str | None = None, begin: float | None = None
    ) -> list[SearchResponse | MmtuneError]:
        """Run many queries on one version in batches; see `Searcher.search`. Returns, per query, its response or its error."""
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
        """Search for the k best items for each query vector.

        vectors: L2-normalised query embeddings [Q, D].
        fingerprint: fingerprint of the model that embedded them.
        where, version, target: see `search`.

        Raises ModelError when the version has another model, and DataError for vectors that are not L2-normalised.
        """
        condition = parse(where) if where else None
        return self.searcher.search_vectors(vectors, fingerprint, k, condition, version, target)

    def value(self, id: str, modality: str) -> bytes | None:
        """Return the original content of an item in a modality, as bytes; None when the item or the content does not exist."""
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
        allow_trained: bool = False,
        cluster: str | None = None,
    ) -> PromotionResult:
        """Make `version` live if it passes all checks (see `mmtune.index.release.promote`).

        gate: conditions that the comparison with the live version must meet (see `mmtune.compare`); default: the default gate.
        queries: held-out data to evaluate both versions on. Required when the live version has another model, except with force=True.
        force: promote even if the index is too inexact or too slow, or the gate fails or cannot be evaluated.
        why: the reason; recorded in the audit log. Required with force=True.
        qrels: file of relevance judgments for `queries`.
        retention: general data on which the new model must not lose quality.
        slices: metadata columns of `queries`; the gate is also evaluated for each value of these columns.
        min_recall, max_slowdown: limits of the index's recall@10 against exact search, and of its median latency, relative to the live one.
        batch_size: items per forward pass of the model.
        allow_trained: only warn about rows of `queries` or `retention` that a model was trained on.
        cluster: metadata column of `queries`, e.g. the recording, whose values the intervals resample; default: groups and equal content.
        """
        from mmtune.data.shards.dataset import open_data

        data, other = (open_data(d) if isinstance(d, str) else d for d in (queries, retention))
        evaluation = EvaluationOptions(gate, qrels, other, slices, batch_size, allow_trained, cluster)
        return self._promoter.promote(version, data, PromotionOptions(evaluation, min_recall, max_slowdown, force, why))

    def rollback(self, why: str | None = None) -> RollbackResult:
        """Make the previously live version live again. This is immediate, because earlier versions are kept up to date."""
        return self._promoter.rollback(why)

    def shadow(self, version: str | None, fraction: float | None = None) -> ShadowState:
        """Start shadow traffic: repeat a fraction of the live searches on `version` in the background, in every process.

        version: the staged version; None stops the shadow traffic.
        fraction: share of the live searches; default: the share that was set for this version before, else 0.1.
        """
        return self.shadow_searches.start(version, fraction)

    def shadow_report(self, version: str | None = None) -> ShadowReport:
        """Compare the shadow searches with the live searches: overlap of the results, changes of rank, latency, empty results."""
        return self.shadow_searches.report(version)

    def interleave(self, version: str, *, k: int = 10, rng: random.Random | None = None, **query: Signal) -> SearchResponse:
        """Search the live version and `version`, and interleave their results (team-draft interleaving, Radlinski et al. 2008).

        Pass clicks on the results to `feedback`, with the response's `query`; `preference` then tells which version wins.
        """
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
        """Return the share of interleaved responses in which clicks favour `version` over the live one, with a 95% confidence
        interval. Default: the version that was interleaved last."""
        return self.interleaving.preference(version)

    def feedback(self, event: Mapping[str, object]) -> JsonObject:
        """Log feedback on one search result and return the logged line.

        event: {"query": the `query` of a response, "item": an item id, "kind": "click", "match" or "not_a_match"}.
        """
        return self.feedback_log.add(event)

    def export_feedback(self, out: str | Path) -> FeedbackExport:
        """Write all feedback to directory `out`, as judgments and packed data, for `mmtune eval --qrels` and `mmtune mine`."""
        return self.feedback_log.export(self.catalog, Path(out))

    # --- inspection ----------------------------------------------------------------------------------------------

    @property
    def live(self) -> str | None:
        """The name of the live version, or None."""
        return self.pool.live

    @property
    def open_versions(self) -> set[str]:
        """The names of the versions that this process has loaded; searching them needs no loading time."""
        return self.pool.names

    def open(self, version: str | None = None) -> "OpenVersion":
        """Load a version (default: the live one). It is verified when this process opens it for the first time.

        Raises ModelError or DataError when the version's model, stores or files are not what its record says.
        """
        return self.pool.open(version)

    def vector_cache(self, fingerprint: str, dim: int) -> VectorCache:
        """Return the cache of the embeddings that one model made, keyed by content hash."""
        return self.pool.vector_cache(fingerprint, dim)

    def staged(self) -> str | None:
        """Return the newest version if it is newer than the live one, i.e. not promoted yet; otherwise None."""
        names, live = self.layout.versions(), self.live
        return names[-1] if names and (live is None or int(names[-1][1:]) > int(live[1:])) else None

    def versions(self) -> "list[VersionStatus]":
        """Return the status of every version, oldest first."""
        return status.version_statuses(self.layout, self.catalog)

    def status(self) -> "CollectionStatus":
        """Return the status of the collection: the live version, all versions, item counts, and shadow traffic."""
        return status.collection_status(self.layout, self.catalog, self.shadow_searches.active())

    def journal(self) -> list[JsonObject]:
        """Return the audit log, oldest first: who did what, when and why."""
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
        """Estimate the hours, bytes and price of embedding with `model`, measured on a sample on this machine.

        data: rows like those to be embedded; default: the items of the collection.
        items: estimate for this many new items, none of which is embedded yet; default: for the rows or items themselves, of which
            those that the collection has embedded with this model cost no time.
        price_per_hour: price of this machine per hour.
        modalities, dim: see `build`.
        sample: items per modality to measure on.
        """
        from mmtune.index.release.cost import CatalogSource, DataSource, estimate_cost, load_for_cost

        loaded = load_for_cost(model, dim)
        if data is not None:
            rows = DataSource(data, loaded, batch_size)
            return estimate_cost(loaded, rows, items, price_per_hour, modalities, sample)
        cache = self.vector_cache(loaded.fingerprint, loaded.dim)
        source = CatalogSource(self.catalog, cache, loaded, batch_size)
        return estimate_cost(loaded, source, items, price_per_hour, modalities, sample)

    def close(self) -> None:
        """Wait for running shadow searches, then release all stores and files."""
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
