"""Metrics of the server in Prometheus' text format."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mmtune.index.collection_results import SearchResult
    from mmtune.index.query.query import Query

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Buckets of histograms of durations."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Buckets of the histogram of batch sizes."""

SCORES = tuple(round(0.05 * n, 2) for n in range(-4, 21))
"""Buckets of the histogram of scores: cosine similarities."""


class Metrics:
    """The metrics of one server, in a registry of their own. `exposition` returns the body of GET /metrics."""

    def __init__(self) -> None:
        import prometheus_client as p

        self.registry = r = p.CollectorRegistry()
        self.requests = p.Counter("mmtune_requests", "HTTP requests", ["route", "status"], registry=r)
        self.seconds = p.Histogram("mmtune_request_seconds", "Duration of requests", ["route"], buckets=SECONDS, registry=r)
        self.searches = p.Counter("mmtune_searches", "Successful searches", ["version", "by"], registry=r)
        self.empty = p.Counter("mmtune_searches_empty", "Searches without results", ["version"], registry=r)
        self.top_score = p.Histogram(
            "mmtune_top_score", "Score of the first result of a search", ["version"], buckets=SCORES, registry=r
        )
        self.refused = p.Counter("mmtune_refused", "Requests refused", ["code"], registry=r)
        self.batch = p.Histogram("mmtune_batch_size", "Queries that shared a forward pass", buckets=SIZES, registry=r)
        self.batch_seconds = p.Histogram("mmtune_batch_seconds", "Duration of a forward pass", buckets=SECONDS, registry=r)
        self.under_way = p.Gauge("mmtune_under_way", "Searches and writes in progress", registry=r, multiprocess_mode="livesum")
        self.arriving = p.Gauge(
            "mmtune_bodies_arriving",
            "Request bodies that have not arrived completely",
            registry=r,
            multiprocess_mode="livesum",
        )
        self.feedback = p.Counter("mmtune_feedback", "Clicks and judgments", ["kind"], registry=r)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Record one forward pass of `size` queries."""
        self.batch.observe(size)
        self.batch_seconds.observe(seconds)

    def observe_results(self, version: str, query: "Query", results: "Sequence[SearchResult]") -> None:
        """Count a search, and record the score of its first result, unless that is no cosine similarity."""
        self.searches.labels(version, query.modality or "item").inc()
        if not results:
            self.empty.labels(version).inc()
        elif not query.hybrid and query.rerank is None:
            self.top_score.labels(version).observe(results[0].score)

    def exposition(self, items: int, live: tuple[str, str] | None, probe: JsonObject | None = None) -> tuple[bytes, str]:
        """Return (body, media type) for GET /metrics: the sums over all workers of the server.

        items: number of items in the collection
        live: live version and its fingerprint, or None
        probe: last probe of the index, a line of the log of probes (see `probe_families`)
        """
        import prometheus_client as p
        from prometheus_client.core import GaugeMetricFamily

        count = GaugeMetricFamily("mmtune_items", "Items in the collection", value=items)
        version = GaugeMetricFamily("mmtune_live", "1 for the live version", labels=["version", "fingerprint"])
        if live is not None:
            version.add_metric(live, 1)
        state = p.CollectorRegistry()
        state.register(_Families(count, version, *probe_families(probe)))
        body = p.generate_latest(self._shared_registry() or self.registry) + p.generate_latest(state)
        return body, p.CONTENT_TYPE_LATEST

    def _shared_registry(self) -> "CollectorRegistry | None":
        """Return a registry with the sums over all workers; None if this is the only process."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not directory:
            return None
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        for file in Path(directory).glob("gauge_live*_*.db"):
            pid = int(file.stem.rpartition("_")[2])
            if not is_running(pid):
                mark_process_dead(pid, directory)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)
        return registry


def probe_families(probe: JsonObject | None) -> "list[Metric]":
    """Return the metrics of the last probe: its time, whether it passed, its recall, and the drift of the day's queries.

    probe: a line of COLL/history/probes.jsonl; None if there was no probe
    """
    from datetime import datetime

    from prometheus_client.core import GaugeMetricFamily

    at = GaugeMetricFamily("mmtune_probe_timestamp_seconds", "Time of the last probe of the index", labels=["version"])
    passed = GaugeMetricFamily("mmtune_probe_ok", "1 if the last probe found what exact search finds", labels=["version"])
    recall = GaugeMetricFamily("mmtune_probe_recall", "Recall against exact search", labels=["version", "index", "bound"])
    drift = GaugeMetricFamily(
        "mmtune_query_drift", "Distance of the day's queries from the gate's", labels=["version", "by", "of", "bound"]
    )
    if probe is not None:
        version, indexes = str(probe["version"]), probe["indexes"]
        at.add_metric([version], datetime.fromisoformat(probe["at"]).timestamp())
        passed.add_metric([version], probe["fault"] is None and all(i["ok"] for i in indexes.values()))
        for name, index in indexes.items():
            for bound, key in (("estimate", "recall"), ("low", "low"), ("high", "high")):
                recall.add_metric([version, name, bound], index[key])
        for one in probe["drift"]:
            for of in [of for of in ("embeddings", "scores") if one[of] is not None]:
                for bound, key in (("estimate", "value"), ("low", "low"), ("high", "high")):
                    drift.add_metric([version, one["by"], of, bound], one[of][key])
    return [at, passed, recall, drift]


class _Families:
    """A collector of metrics that are known when they are asked for."""

    def __init__(self, *families: "Metric"):
        self.families = families

    def collect(self) -> "Iterable[Metric]":
        return self.families


def is_running(pid: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class MetricsMiddleware:
    """ASGI middleware that counts and times every HTTP request by its route.

    It does not use the path as a label, because callers can invent any number of paths.

    failed: called with the status of a search that was answered with an error
    """

    def __init__(self, app: "ASGIApp", metrics: Metrics, failed: Callable[[int], None] = lambda status: None):
        self.app, self.metrics, self.failed = app, metrics, failed

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, status = time.perf_counter(), 500

        async def noting_send(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        finally:
            route = route_of(scope)
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - begin)
            if route == "/search" and status >= 400:
                self.failed(status)


def route_of(scope: "Scope") -> str:
    """Return the pattern of the route, "/page" for everything on the search page, or "other" if no route matched."""
    if scope["path"].startswith("/page"):
        return "/page"
    return getattr(scope.get("route"), "path", "other")
