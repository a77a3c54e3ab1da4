"""The routes of the REST API."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.index.monitoring.probe_log import last_probe
from mmtune.serve.error_responses import RequestError
from mmtune.serve.openapi import ERROR_RESPONSES, feedback_body, item_body, search_body
from mmtune.serve.request import parse_search, read_body, read_json
from mmtune.serve.responses import public_message
from mmtune.serve.schemas import (
    DeleteDocument,
    HealthDocument,
    ItemDocument,
    LimitsDocument,
    PutDocument,
    ReadyDocument,
    SearchDocument,
    VersionsDocument,
)
from mmtune.serve.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter, Request, Response

READY_SECONDS = 5.0
"""Seconds within which the databases must answer the check of /ready."""
UNKNOWN = "application/octet-stream"
"""Media type of values whose type is unknown. Browsers download them."""
VALUE_HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
"""Values are files from users. With these headers a browser neither guesses their type nor runs scripts in them."""

PAGE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""The page is one document, without scripts."""


def router(service: Service) -> "APIRouter":
    """Create the routes of one service. They read bodies themselves, to refuse a body over a limit while it arrives."""
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse, Response
    from fastapi.routing import APIRoute

    class DirectRoute(APIRoute):
        """Calls an endpoint whose only parameter is `request` directly, without FastAPI's dependency resolution."""

        def get_route_handler(self) -> "Callable[[Request], Coroutine[object, object, Response]]":
            direct = list(inspect.signature(self.endpoint).parameters) == ["request"]
            return self.endpoint if direct else super().get_route_handler()

    routes, limits = APIRouter(responses=ERROR_RESPONSES, route_class=DirectRoute), service.settings.limits

    @routes.post(
        "/search",
        openapi_extra=search_body(),
        response_model=SearchDocument,
        summary="Find the k items that are most similar to a value or an item",
    )
    async def search(request: Request) -> JSONResponse:
        service.require_free_slot()
        wanted = parse_search(await read_body(request, limits), limits)
        with service.slot():
            return JSONResponse(await service.search(wanted))

    @routes.get("/items/{id:path}/value/{modality}", response_class=Response, summary="Get an item's value as it was stored")
    async def value(id: str, modality: str) -> Response:
        data, mime = await service.run_blocking(service.value, id, modality)
        unknown = {"Content-Disposition": "attachment"} if mime == UNKNOWN else {}
        return Response(data, media_type=mime, headers=VALUE_HEADERS | unknown)

    @routes.get(
        "/items/{id:path}",
        response_model=ItemDocument,
        summary="Get an item's group, metadata, and the URLs of its values",
    )
    async def item(id: str) -> JSONResponse:
        return JSONResponse(await service.run_blocking(service.item, id))

    @routes.put(
        "/items/{id:path}",
        openapi_extra=item_body(),
        response_model=PutDocument,
        summary="Insert or replace an item (needs the token)",
    )
    async def put(id: str, request: Request) -> JSONResponse:
        service.require_free_slot()
        body = await read_body(request, limits)
        with service.slot():
            done = await service.run_blocking(service.put, id, body)
        return JSONResponse(done, 201 if done["created"] else 200)

    @routes.delete("/items/{id:path}", response_model=DeleteDocument, summary="Remove an item (needs the token)")
    async def delete(id: str) -> JSONResponse:
        with service.slot():
            return JSONResponse(await service.run_blocking(service.delete, id))

    @routes.post(
        "/feedback",
        openapi_extra=feedback_body(),
        status_code=201,
        summary="Record a click on a result, or a judgment of a result",
    )
    async def feedback(request: Request) -> JSONResponse:
        service.require_free_slot()
        event = await read_json(request)
        with service.slot():
            return JSONResponse(await service.run_blocking(service.feedback, event), 201)

    _add_state_routes(routes, service)
    _add_monitoring_routes(routes, service)
    return routes


def _add_monitoring_routes(routes: "APIRouter", service: Service) -> None:
    """Add the page that says whether search is well, and the same as JSON."""
    from fastapi.responses import HTMLResponse, JSONResponse

    from mmtune.index.monitoring.health import HealthReport, check_health
    from mmtune.reporting.health_page import health_page

    def health() -> HealthReport:
        report, root = check_health(service.collection.layout), service.collection.path
        lines = [
            replace(x, reason=public_message(Exception(x.reason), root), action=x.action.replace(str(root), root.name))
            for x in report.lines
        ]
        return replace(report, lines=lines)

    @routes.get("/monitoring", response_class=HTMLResponse, summary="Get a page that says whether search is well (admin)")
    async def page() -> HTMLResponse:
        with service.slot():  # counted as a search, because it reads a month of history
            return HTMLResponse(await service.run_blocking(lambda: health_page(health())), headers=PAGE_HEADERS)

    @routes.get("/monitoring/report", summary="Get what the page /monitoring says, as JSON (admin)")
    async def report() -> JSONResponse:
        with service.slot():
            return JSONResponse(await service.run_blocking(lambda: health().to_dict()))


def _add_state_routes(routes: "APIRouter", service: Service) -> None:
    """Add the routes about the server and the versions."""
    import anyio.to_thread
    from fastapi.responses import JSONResponse, RedirectResponse, Response

    limits = service.settings.limits

    @routes.get("/health", summary="Check that the server is running")
    async def health() -> HealthDocument:
        return {"status": "ok"}

    @routes.get("/ready", response_model=ReadyDocument, summary="Check that searches can be answered now")
    async def ready() -> JSONResponse:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return JSONResponse(await anyio.to_thread.run_sync(service.ready, abandon_on_cancel=True))
        except TimeoutError:
            raise RequestError(503, "store_unavailable", "the vector store does not answer", ready=False) from None

    @routes.get("/versions", response_model=VersionsDocument, summary="List the versions, and which are live and staged")
    async def versions() -> JSONResponse:
        return JSONResponse(await service.run_blocking(service.versions))

    @routes.get("/shadow", summary="Compare the staged version with the live one, from shadow traffic and interleaving")
    async def shadow(version: str | None = None) -> JSONResponse:
        with service.slot():  # counted as a search, because it reads the whole log
            return JSONResponse(await service.run_blocking(service.shadow, version))

    @routes.get("/limits", summary="Get the limits on one request")
    async def request_limits() -> LimitsDocument:
        return {
            "max_bytes": limits.max_bytes,
            "max_k": limits.max_k,
            "max_filter": limits.max_filter,
            "max_concurrent": limits.max_concurrent,
            "values": {m: {k: limits.values[k] for k in modalities.get(m).request_limits} for m in modalities.names()},
        }

    @routes.get("/metrics", response_class=Response, summary="Get metrics for Prometheus")
    async def metrics() -> Response:
        def document() -> tuple[bytes, str]:
            live = service.collection.live
            current = None if live is None else (live, service.collection.layout.record(live)["fingerprint"])
            return service.metrics.exposition(len(service.collection.catalog), current, last_probe(service.collection.path))

        data, mime = await service.run_blocking(document)
        return Response(data, headers={"Content-Type": mime})

    @routes.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/page/" if service.settings.page else "/openapi.json")
