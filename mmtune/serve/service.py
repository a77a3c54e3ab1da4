"""Operations shared by the REST routes and the search page: search, change items, record feedback, and report versions."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from mmtune import modalities
from mmtune.contracts import JsonObject, Row
from mmtune.errors import DataError, MmtuneError, ModelError, Rejected, StoreUnavailable
from mmtune.index.query.filters import parse
from mmtune.index.query.query import Query
from mmtune.index.query_content import decode_query
from mmtune.index.stores.store_rows import check_id, plain_metadata
from mmtune.serve.batcher import Batcher
from mmtune.serve.error_responses import RequestError, invalid_error, too_many_requests_error
from mmtune.serve.memory_limit import MemoryLimit
from mmtune.serve.prometheus import Metrics
from mmtune.serve.request import RequestBody, SearchRequest, decoded_bytes, validated
from mmtune.serve.responses import (
    content_url,
    item_not_found_error,
    log_error,
    no_live_version_error,
    public_message,
    request_error,
    search_document,
    translate_errors,
    unanswerable_error,
    versions_document,
)
from mmtune.serve.schemas import (
    DeleteDocument,
    FeedbackFields,
    ItemDocument,
    ItemFields,
    PutDocument,
    ReadyDocument,
    SearchDocument,
    VersionsDocument,
)
from mmtune.serve.served_collection import ServedCollection
from mmtune.serve.settings import Settings
from mmtune.serve.tracing import Tracing
from mmtune.serve.traffic_watch import TrafficWatch

if TYPE_CHECKING:
    import anyio
    from opentelemetry.trace import SpanContext

    from mmtune.index.item_catalog import Item
    from mmtune.index.open_version import OpenVersion

T = TypeVar("T")
P = ParamSpec("P")
log = logging.getLogger("mmtune.serve")
REPORT_BYTES = 4 * 2**20
"""Bytes of each log that GET /shadow reads: about 16,000 searches."""
SMALL_BYTES = 2**23  # values that take at most this much memory when decoded need not reserve memory


class Service:
    """One collection with its limits and metrics. Methods that are not async block; `run_blocking` runs them in threads.

    stopping: whether the server is about to stop; /ready then fails
    """

    def __init__(self, collection: ServedCollection, settings: Settings, metrics: Metrics, tracing: Tracing | None = None):
        self.collection, self.settings, self.metrics = collection, settings, metrics
        self.tracing, self.traffic = tracing or Tracing(), TrafficWatch(collection, settings)
        self._span_of: dict[int, SpanContext] = {}
        self._under_way = 0
        self.batcher: Batcher[str | None, Query, SearchDocument | None] = Batcher(
            self._run_batch, settings.window, settings.batch, metrics.observe_batch
        )
        self.batcher.expected = lambda: self._under_way
        self.memory = MemoryLimit(settings.limits.max_decoded)
        self._threads: anyio.CapacityLimiter | None = None
        self._random = random.Random()
        self.stopping = False

    def require_free_slot(self) -> None:
        """Raise RequestError 429 if no slot is free. It is called before a body is read, to refuse it early."""
        if self._under_way >= self.settings.limits.max_concurrent:
            raise too_many_requests_error(self.settings.limits.max_concurrent)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Context manager that counts a request as in progress. Raises RequestError 429 if `max_concurrent` others already are.

        It must be used on the event loop.
        """
        self.require_free_slot()
        self._under_way += 1
        self.metrics.under_way.set(self._under_way)
        try:
            yield
        finally:
            self._under_way -= 1
            self.metrics.under_way.set(self._under_way)

    def _translated(self, default_status: int) -> contextlib.AbstractContextManager[None]:
        return translate_errors(default_status, self.collection.path)

    async def run_blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in a thread. There are 8 more threads than concurrent requests, for requests without a slot."""
        import anyio
        import anyio.to_thread

        if self._threads is None:
            self._threads = anyio.CapacityLimiter(self.settings.limits.max_concurrent + 8)
        return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._threads)

    # --- search --------------------------------------------------------------------------------------------------

    async def search(self, request: SearchRequest) -> SearchDocument:
        """Run a search.

        Raises RequestError: 404 for an unknown version or item, 422 for a value, filter or name that is not valid, and 503 if
        no version is live or the version could not be loaded.
        """
        if request.modality is None or modalities.get(request.modality).language:
            return await self._answer(request, self._size_and_query(request)[1] or self._query(request))
        size, query = await self.run_blocking(self._size_and_query, request)
        async with self.memory.reserve(size):
            if query is None:
                query = await self.run_blocking(self._query, request)
            return await self._answer(request, query)

    async def _answer(self, request: SearchRequest, query: Query) -> SearchDocument:
        if request.fields.interleave:
            return await self._interleaved(request.fields.interleave, query)
        if request.fields.version in (None, "live"):
            return await self._search(None, query)
        return await self._search(await self.run_blocking(self.version, request.fields.version), query)

    async def _interleaved(self, other: str, query: Query) -> SearchDocument:
        """Search the live version and another one, and interleave their results in one list.

        The "query" of the response identifies this impression in feedback.
        """

        def versions_of() -> dict[str, str]:
            with self._translated(422):
                return self.collection.interleaving.teams(self.version(other) or "live")

        versions = await self.run_blocking(versions_of)
        answers = await asyncio.gather(*(self._search(name, query) for name in versions.values()))
        by_id = {team: {r["id"]: r for r in a["results"]} for team, a in zip(versions, answers, strict=True)}
        rankings = {team: list(results) for team, results in by_id.items()}
        impression, drafted = await self.run_blocking(
            self.collection.interleaving.draft, versions, rankings, answers[0]["query"], query.k, self._random
        )
        results = [{**by_id[team][id], "team": team, "version": versions[team]} for id, team in drafted]
        return {
            "version": "|".join(versions.values()),
            "fingerprint": "",
            "query": impression,
            "seconds": max(a["seconds"] for a in answers),
            "results": results,  # type: ignore[typeddict-item]
        }

    def _size_and_query(self, request: SearchRequest) -> tuple[int, Query | None]:
        """Return (bytes that decoding the value takes, query). The query is None if the value is too large to decode at once."""
        size = decoded_bytes(request.modality, request.data, self.settings.limits) if request.modality else 0
        return size, self._query(request) if size <= SMALL_BYTES else None

    def _query(self, request: SearchRequest) -> Query:
        """Convert the request to a Query of the index, with its value decoded. Raises RequestError 422."""
        fields, name = request.fields, request.modality or ""
        with self._translated(422):
            return Query(
                name,
                decode_query(name, request.data) if name else None,
                fields.item,
                min(fields.k, self.settings.limits.max_k),
                parse(fields.filter) if fields.filter else None,
                tuple(fields.target) if fields.target else None,
                fields.hybrid,
                fields.group_by,
                self.settings.rerank,
            )

    async def _search(self, version: str | None, query: Query) -> SearchDocument:
        """Search in a batch with other queries.

        The query runs alone, in its own thread, if it needs more than the nearest neighbours, or if the version has to be
        loaded first.
        """
        kind, begin = query.modality or "item", time.perf_counter()
        with self.tracing.span("search", {"mmtune.by": kind, "mmtune.k": query.k, "mmtune.hybrid": query.hybrid}) as note:
            document = await self._batched(version, query) if query.nearest_only else None
            if document is None:
                (found,) = await self.run_blocking(self._search_many, version, [query])
                if isinstance(found, RequestError):
                    raise found
                document = found
            self.traffic.searched(document, query, time.perf_counter() - begin)
            note |= {"mmtune.version": document["version"], "mmtune.results": len(document["results"])}
            return document

    async def _batched(self, version: str | None, query: Query) -> SearchDocument | None:
        """Search in a batch. The span of the batch is linked to the spans of its queries."""
        if (context := self.tracing.current()) is not None:
            self._span_of[id(query)] = context
        try:
            return await self.batcher.submit(version, query)
        finally:
            self._span_of.pop(id(query), None)

    def _run_batch(self, version: str | None, queries: list[Query]) -> Sequence[SearchDocument | RequestError] | Sequence[None]:
        """Same as `_search_many`, but return None for each query if the version is not loaded.

        Loading it here would delay other batches.
        """
        with self._translated(503):
            name = version or self.collection.live
        if name is None or name in self.collection.open_versions:
            links = [context for q in queries if (context := self._span_of.get(id(q)))]
            with self.tracing.span("batch", {"mmtune.queries": len(queries), "mmtune.version": name or ""}, links):
                return self._search_many(version, queries)
        return [None] * len(queries)

    def _search_many(self, version: str | None, queries: Sequence[Query]) -> list[SearchDocument | RequestError]:
        """Return, for each query, the response or its error."""
        opened = self.opened(version)
        known = self.items([q.item for q in queries if q.item is not None])
        errors = {n: e for n, q in enumerate(queries) if (e := unanswerable_error(opened, q, known)) is not None}
        rest = [q for n, q in enumerate(queries) if n not in errors]
        responses = iter(responses_of := self.collection.search_many(rest, version))
        items = self.items(list({r.id for a in responses_of if not isinstance(a, MmtuneError) for r in a.results}))
        out: list[SearchDocument | RequestError] = []
        for n, query in enumerate(queries):
            if n in errors:
                out.append(errors[n])
                continue
            response = next(responses)
            if isinstance(response, MmtuneError):
                out.append(request_error(response, 422, self.collection.path))
                continue
            self.metrics.observe_results(response.version, query, response.results)
            out.append(search_document(response, items))
        return out

    def version(self, wanted: str | None) -> str | None:
        """Return the name of a version, or None for the live version. Raises RequestError 404 for an unknown version."""
        try:
            version = self.collection.resolve(wanted)
            if version is not None:
                self.collection.layout.record(version)
        except (ModelError, DataError) as e:
            raise RequestError(404, "no_version", public_message(e, self.collection.path)) from None
        return version

    def opened(self, version: str | None) -> "OpenVersion":
        """Return the version with its model and vectors, loading them if necessary.

        Raises RequestError 503 if it could not be loaded. The reason can contain file names, so it is only logged.
        """
        try:
            return self.collection.open(version)
        except StoreUnavailable as e:
            raise request_error(e, 503, self.collection.path) from None
        except Exception as e:  # damaged files can make libraries raise anything
            if version is None and self.collection.live is None:
                raise no_live_version_error() from None
            log_error(f"version {version or self.collection.live} cannot be loaded: {type(e).__name__}: {e}")
            line = f"version {version or 'live'} could not be loaded; see the server log or `mmtune index status`"
            raise RequestError(503, "not_open", line) from None

    # --- items ---------------------------------------------------------------------------------------------------

    def items(self, ids: Sequence[str]) -> "dict[str, Item]":
        """Return the items that exist, as {id: item}."""
        return self.collection.catalog.items(ids)

    def item(self, id: str) -> ItemDocument:
        """Return an item's group, metadata and the URLs of its values. Raises RequestError 404."""
        item = self.items([id]).get(id)
        if item is None:
            raise item_not_found_error(id)
        return {"id": id, "group": item.group, "meta": item.meta, "values": {m: content_url(id, m) for m in item.contents}}

    def value(self, id: str, modality: str) -> tuple[bytes, str]:
        """Return (bytes, media type) of an item's value.

        Raises RequestError 404 if there is no such value, and 410 if the shards that held it are gone or changed.
        """
        if modality not in modalities.names():
            raise RequestError(404, "no_value", f"there is no modality {modality[:80]!r}")
        try:
            data = self.collection.value(id, modality)
        except (DataError, OSError, KeyError) as e:
            log.error("%s of item %r cannot be read: %s", modality, id, e)
            raise RequestError(410, "gone", f"{modality} of item {id[:200]!r} is no longer in its shards") from None
        if data is None:
            raise RequestError(404, "no_value", f"item {id[:200]!r} has no {modality}")
        return data, modalities.get(modality).media_type(data)

    def put(self, id: str, body: RequestBody) -> PutDocument:
        """Insert or replace an item in every version. Raises RequestError 422 for invalid input, and 409 for a conflict."""
        limits = self.settings.limits
        fields = validated(ItemFields, body.fields, limits, modalities.names())
        if not body.values:
            raise invalid_error(f"an item needs a value: one of {', '.join(modalities.names())}")
        with self._translated(422):
            check_id(id, "items")
            meta = plain_metadata(fields.meta, "meta")
            for name, data in body.values.items():
                decoded_bytes(name, data, limits)
                try:
                    modalities.get(name).check(data)
                except Rejected as e:
                    raise invalid_error(f"{name}: {e}", field=name) from None
        with self.tracing.span("upsert"), self._translated(409):
            done = self.collection.upsert([Row(id, fields.group, body.values, meta)])
        if done.rejected:
            raise invalid_error(done.rejected[0].reason)
        return {"id": id, "created": bool(done.new), "changed": bool(done.changed), "behind": self._behind(done.behind)}

    def delete(self, id: str) -> DeleteDocument:
        """Remove an item from every version. Raises RequestError 404 or 409."""
        if not self.items([id]):
            raise item_not_found_error(id)
        with self.tracing.span("delete"), self._translated(409):
            done = self.collection.delete([id])
        return {"id": id, "deleted": bool(done.deleted), "behind": self._behind(done.behind)}

    def _behind(self, reasons: Mapping[str, str]) -> list[str]:
        """Return the versions in which a change could not be made, and log the reasons."""
        for version, reason in reasons.items():
            log.error("version %s could not be changed: %s", version, reason)
        return list(reasons)

    # --- feedback ------------------------------------------------------------------------------------------------

    def feedback(self, event: Mapping[str, object]) -> JsonObject:
        """Record a click or a judgment (see `FeedbackFields`), and return the recorded line. Raises RequestError 404 or 422."""
        fields = validated(FeedbackFields, event, self.settings.limits)
        if not self.items([fields.item]):
            raise item_not_found_error(fields.item)
        with self._translated(422):
            line = self.collection.feedback(fields.model_dump(exclude_none=True))
        self.metrics.feedback.labels(line["kind"]).inc()
        return line

    # --- versions ------------------------------------------------------------------------------------------------

    def versions(self) -> VersionsDocument:
        """Return the live version and since when it is live, the staged version, and all versions."""
        return versions_document(self.collection)

    def shadow(self, version: str | None) -> JsonObject:
        """Report how a staged version compares with the live one, from the last REPORT_BYTES of the shadow and interleaving logs.

        Raises RequestError 404 for an unknown version.
        """
        name = self.version(version)
        report = self.collection.shadow_searches.report(name, REPORT_BYTES).to_dict()
        return {**report, "preference": self.collection.interleaving.preference(name, REPORT_BYTES).to_dict()}

    def ready(self) -> ReadyDocument:
        """Return the live version if searches can be answered now. Otherwise raises RequestError 503.

        The version must be loaded, its stores' databases must answer, and the server must not be stopping.
        """
        if self.stopping:
            raise RequestError(503, "stopping", "the server is stopping", ready=False)
        with self._translated(503):
            live = self.collection.live
        if live is None:
            error = no_live_version_error()
            raise RequestError(error.status, error.code, error.message, ready=False)
        if live not in self.collection.open_versions:
            line = f"version {live} is being loaded, or could not be loaded; see the server log"
            raise RequestError(503, "not_open", line, ready=False)
        with self._translated(503):
            self.collection.open(live).probe()
            len(self.collection.catalog)
        return {"ready": True, "version": live}

    def queryable(self) -> list[str]:
        """Modalities in which the live version, or else the staged one, accepts queries; all modalities if there is no version."""
        try:
            return list(self.collection.open(None if self.collection.live else self.collection.staged()).model.towers)
        except MmtuneError:
            return modalities.names()
