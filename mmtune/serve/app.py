"""The FastAPI application: middleware, routes, the search page, and tasks at start and stop."""

import asyncio
import contextlib
import gc
import logging
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import MissingExtra, MmtuneError
from mmtune.index.collection_layout import CollectionLayout
from mmtune.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

    from mmtune.serve.service import Service

log = logging.getLogger("mmtune.serve")
PACKAGES = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client", "gradio")
"""Packages of the `serve` extra."""


def require_packages() -> None:
    """Raise MissingExtra unless every package of the `serve` extra is installed."""
    import importlib.util

    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f'serving needs {name}: pip install "mmtune[serve]"')


def create_app(path: str | Path, settings: Settings | None = None) -> "FastAPI":
    """Create the application for the collection at `path`. Its `state.service` is the Service.

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
    from mmtune.serve.routes import router
    from mmtune.serve.served_collection import ServedCollection
    from mmtune.serve.service import Service

    settings, metrics = settings or Settings(), Metrics()
    collection = ServedCollection(path)
    service = Service(collection, settings, metrics)
    uploads = tempfile.TemporaryDirectory(prefix="mmtune-serve-")  # only the server's user can read it (mode 700)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(open_new_versions(service))
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await service.batcher.close()
            await asyncio.to_thread(collection.close)
            uploads.cleanup()

    app = FastAPI(
        title=f"mmtune: {layout.manifest['name']}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts from other servers; /openapi.json has the same content
        redoc_url=None,
        middleware=[
            Middleware(MetricsMiddleware, metrics),
            Middleware(AuthMiddleware, settings),
            Middleware(BodyLimitMiddleware, settings.limits.max_bytes),
        ],
    )
    app.state.service = service
    _add_error_handlers(app, service)
    app.include_router(router(service))
    if settings.page:
        from mmtune.serve.page import mount_page

        mount_page(app, service, Path(uploads.name))
    return app


def _add_error_handlers(app: "FastAPI", service: "Service") -> None:
    """Return every error as the same kind of JSON body, and count it."""
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from mmtune.serve.error_responses import RequestError

    @app.exception_handler(RequestError)
    async def refused(request: "Request", error: RequestError) -> JSONResponse:
        service.metrics.refused.labels(error.code).inc()
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: "Request", e: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method"}.get(e.status_code, "http")
        return await refused(request, RequestError(e.status_code, code, str(e.detail)))

    @app.exception_handler(Exception)
    async def internal_error(request: "Request", e: Exception) -> JSONResponse:
        log.exception("%s %s", request.method, request.url.path, exc_info=e)
        return await refused(request, RequestError(500, "internal", "internal server error; see the server log"))


async def open_new_versions(service: "Service") -> None:
    """Load the live and the staged version as soon as they exist, so that searches and promotions need not wait for a model.

    Runs until it is cancelled, and checks every `settings.watch` seconds.
    """
    reported: dict[str, str] = {}  # {version: the last error logged for it}, so that an error is logged only once
    while True:
        for version in await asyncio.to_thread(_wanted_versions, service):
            if version in service.collection.open_versions:
                continue
            try:
                await asyncio.to_thread(service.collection.open, version)
                log.info("version %s is loaded", version)
                freeze_garbage()
                reported.pop(version, None)
            except (MmtuneError, OSError) as e:
                if reported.get(version) != str(e):
                    log.error("version %s cannot be loaded: %s", version, e)
                    reported[version] = str(e)
        await asyncio.sleep(service.settings.watch)


@cache
def freeze_garbage() -> None:
    """Exclude all objects that exist now from garbage collection. Only the first call has an effect.

    Otherwise the garbage collector would scan all of torch, and block every request for about 0.2 seconds each time.
    """
    gc.collect()
    gc.freeze()


def _wanted_versions(service: "Service") -> list[str]:
    try:
        versions = [service.collection.live, service.collection.staged()]
    except (MmtuneError, OSError) as e:
        log.error("the collection cannot be read: %s", e)
        return []
    return [v for v in versions if v]
