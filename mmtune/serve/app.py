"""The FastAPI application: middleware, routes, the search page, and tasks at start and stop."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import MissingExtra
from mmtune.index.collection_layout import CollectionLayout
from mmtune.serve.settings import Settings
from mmtune.serve.version_watcher import open_new_versions

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from opentelemetry.trace import TracerProvider

    from mmtune.serve.service import Service

log = logging.getLogger("mmtune.serve")
PACKAGES = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")
"""Packages of the `serve` extra."""


def require_packages() -> None:
    """Raise MissingExtra unless every package of the `serve` extra is installed."""
    import importlib.util

    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f'serving needs {name}: pip install "mmtune[serve]"')


def create_app(
    path: str | Path, settings: Settings | None = None, tracer_provider: "TracerProvider | None" = None
) -> "FastAPI":
    """Create the application for the collection at `path`. Its `state.service` is the Service.

    tracer_provider: where OpenTelemetry spans go; default: the OTLP endpoint of the environment if `settings.traces`, else nowhere

    Raises DataError if there is no collection at `path`. The application needs its lifespan events: run it with
    `mmtune.serve.server.run_server`, or use Starlette's TestClient as a context manager.
    """
    layout = CollectionLayout(path)  # raises DataError at once if there is no collection
    require_packages()
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    from mmtune.runtime.version import __version__
    from mmtune.serve.auth import AuthMiddleware
    from mmtune.serve.body_limit import BodyLimitMiddleware
    from mmtune.serve.prometheus import Metrics, MetricsMiddleware
    from mmtune.serve.rate_middleware import RateLimitMiddleware
    from mmtune.serve.request_log import RequestLogMiddleware
    from mmtune.serve.routes import router
    from mmtune.serve.served_collection import ServedCollection
    from mmtune.serve.service import Service
    from mmtune.serve.tracing import TraceMiddleware, Tracing, trace_provider

    settings, metrics = settings or Settings(), Metrics()
    collection = ServedCollection(Path(path).resolve())  # errors then name an absolute path, which is not sent to clients
    if tracer_provider is None and settings.traces:
        tracer_provider = trace_provider()
    service = Service(collection, settings, metrics, Tracing(tracer_provider))
    collection.feedback_log.spool = settings.spool

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in (open_new_versions(service), service.traffic.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await service.batcher.close()
            await asyncio.to_thread(service.traffic.close)
            await asyncio.to_thread(collection.close)
            await asyncio.to_thread(service.tracing.close)

    app = FastAPI(
        title=f"mmtune: {layout.manifest['name']}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts from other servers; /openapi.json has the same content
        redoc_url=None,
        middleware=[
            Middleware(RequestLogMiddleware, settings, lambda: service.stopping),
            Middleware(TraceMiddleware, service.tracing),
            Middleware(MetricsMiddleware, metrics, service.traffic.failed),
            Middleware(RateLimitMiddleware, settings, metrics, "address"),
            Middleware(AuthMiddleware, settings),
            Middleware(RateLimitMiddleware, settings, metrics, "token"),
            Middleware(BodyLimitMiddleware, settings.limits, metrics),
        ],
    )
    app.state.service = service
    _add_error_handlers(app, service)
    app.include_router(router(service))
    if settings.page:
        from mmtune.serve.page import page_router

        app.include_router(page_router(service))
    return app


def _add_error_handlers(app: "FastAPI", service: "Service") -> None:
    """Return every error as the same kind of JSON body, and count it."""
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from mmtune.serve.error_responses import RequestError
    from mmtune.serve.prometheus import route_of
    from mmtune.serve.request_info import request_info

    @app.exception_handler(RequestError)
    async def refused(request: "Request", error: RequestError) -> JSONResponse:
        service.metrics.refused.labels(error.code).inc()
        request_info(request.scope).code = error.code
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: "Request", e: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method"}.get(e.status_code, "http")
        return await refused(request, RequestError(e.status_code, code, str(e.detail)))

    @app.exception_handler(Exception)
    async def internal_error(request: "Request", e: Exception) -> JSONResponse:
        info = request_info(request.scope)  # this runs outside of the middleware, so the id is added here
        route = route_of(request.scope)
        log.error("%s %s [%s] %s", request.method, route, info.id, type(e).__name__, exc_info=e)
        response = await refused(request, RequestError(500, "internal", "internal server error; see the server log"))
        response.headers["X-Request-Id"] = info.id
        return response
