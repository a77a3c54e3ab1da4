"""The whole application: routes, page, guards, and what happens at its beginning and end."""

import asyncio
import contextlib
import gc
import logging
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.errors import MissingExtra, MmtuneError
from mmtune.index.layout import Layout
from mmtune.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

    from mmtune.serve.service import Service

log = logging.getLogger("mmtune.serve")


def needs() -> None:
    """MissingExtra unless everything that serving needs is installed."""
    import importlib.util

    for name in ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client", "gradio"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f'serving needs {name}: pip install "mmtune[serve]"')


def make(path: str | Path, settings: Settings | None = None) -> "FastAPI":
    """The application over the collection at `path`; its `state.service` is the Service. DataError when there is no collection.

    Whoever runs it sees to its lifespan: `mmtune.serve.server.run`, or Starlette's TestClient as a context.
    """
    layout = Layout(path)  # says at once what is no collection
    needs()
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware

    from mmtune import __version__
    from mmtune.serve.auth import Guarded
    from mmtune.serve.body_limit import Sized
    from mmtune.serve.error_responses import Refusal
    from mmtune.serve.live_versions import Served
    from mmtune.serve.prometheus import Counted, Metrics
    from mmtune.serve.routes import router
    from mmtune.serve.service import Service

    settings, metrics = settings or Settings(), Metrics()
    collection = Served(path)
    service = Service(collection, settings, metrics)
    uploads = tempfile.TemporaryDirectory(prefix="mmtune-serve-")  # mode 700

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(watch(service))
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
        docs_url=None,
        redoc_url=None,  # their scripts come from elsewhere; /openapi.json is the whole of it
        middleware=[Middleware(Counted, metrics), Middleware(Guarded, settings), Middleware(Sized, settings.limits.max_bytes)],
    )
    app.state.service = service

    @app.exception_handler(Refusal)
    async def refused(request: "Request", no: Refusal) -> JSONResponse:
        metrics.refused.labels(no.code).inc()
        return JSONResponse(no.body, no.status, no.headers)

    @app.exception_handler(HTTPException)
    async def http(request: "Request", e: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method"}.get(e.status_code, "http")
        return await refused(request, Refusal(e.status_code, code, str(e.detail)))

    @app.exception_handler(Exception)
    async def broken(request: "Request", e: Exception) -> JSONResponse:
        log.exception("%s %s", request.method, request.url.path, exc_info=e)
        return await refused(request, Refusal(500, "internal", "an error of the server; its log has it"))

    app.include_router(router(service))
    if settings.page:
        from mmtune.serve.page import mount

        mount(app, service, Path(uploads.name))
    return app


async def watch(service: "Service") -> None:
    """Open who is live and who is staged before anybody asks: neither the first search nor a cutover waits for a model."""
    said: dict[str, str] = {}
    while True:
        for version in await asyncio.to_thread(_wanted, service):
            if version in service.collection.open_versions:
                continue
            try:
                await asyncio.to_thread(service.collection.open, version)
                log.info("version %s is open", version)
                settle()
                said.pop(version, None)
            except (MmtuneError, OSError) as e:
                if said.get(version) != str(e):
                    log.error("version %s does not open: %s", version, e)
                    said[version] = str(e)
        await asyncio.sleep(service.settings.watch)


@cache
def settle() -> None:
    """Once: what is loaded by now stays, and a collection of garbage need not look through all of torch for it, which stops
    every request for a fifth of a second."""
    gc.collect()
    gc.freeze()


def _wanted(service: "Service") -> list[str]:
    try:
        found: list[Any] = [service.collection.live, service.collection.staged()]
    except (MmtuneError, OSError) as e:
        log.error("the collection cannot be read: %s", e)
        return []
    return [v for v in found if v]
