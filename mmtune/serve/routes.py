"""The REST surface."""

import inspect
from typing import TYPE_CHECKING, Any

from mmtune import modalities
from mmtune.serve.openapi import FEEDBACK, REFUSALS, put_body, search_body
from mmtune.serve.request import read_body, read_json, search_of
from mmtune.serve.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter


def router(service: Service) -> "APIRouter":
    """The routes of one service. They read bodies themselves: what is over a limit is refused before it is held."""
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse, Response
    from fastapi.routing import APIRoute

    class Direct(APIRoute):
        """An endpoint that takes the request as it is, and nothing else, is simply called."""

        def get_route_handler(self) -> Any:
            alone = list(inspect.signature(self.endpoint).parameters) == ["request"]
            return self.endpoint if alone else super().get_route_handler()

    routes, limits = APIRouter(responses=REFUSALS, route_class=Direct), service.settings.limits

    @routes.post("/search", openapi_extra=search_body(), summary="The k items most alike a value or an item")
    async def search(request: Request) -> JSONResponse:
        with service.place():
            asked = search_of(await read_body(request, limits), limits)
            return JSONResponse(await service.search(asked))

    @routes.get("/items/{id:path}/value/{modality}", summary="An item's own value, as it was packed")
    async def value(id: str, modality: str) -> Response:
        data, mime = await service.thread(service.value, id, modality)
        return Response(
            data, media_type=mime, headers=SAFE | ({} if mime != UNKNOWN else {"Content-Disposition": "attachment"})
        )

    @routes.get("/items/{id:path}", summary="An item's group, metadata, and where its values are")
    async def item(id: str) -> JSONResponse:
        return JSONResponse(await service.thread(service.item, id))

    @routes.put("/items/{id:path}", openapi_extra=put_body(), summary="Insert or replace an item (needs the token)")
    async def put(id: str, request: Request) -> JSONResponse:
        with service.place():
            done = await service.thread(service.put, id, await read_body(request, limits))
        return JSONResponse(done, 201 if done["created"] else 200)

    @routes.delete("/items/{id:path}", summary="Remove an item (needs the token)")
    async def delete(id: str) -> JSONResponse:
        with service.place():
            return JSONResponse(await service.thread(service.delete, id))

    @routes.post("/feedback", openapi_extra=FEEDBACK, summary="A click on a result, a match, or not a match")
    async def feedback(request: Request) -> JSONResponse:
        with service.place():
            event = await read_json(request, limits)
            return JSONResponse(await service.thread(service.feedback, event), 201)

    _about(routes, service)
    return routes


def _about(routes: "APIRouter", service: Service) -> None:
    """The routes that say how the service is, and answer nothing of the corpus."""
    from fastapi.responses import JSONResponse, RedirectResponse, Response

    limits = service.settings.limits

    @routes.get("/health", summary="The process runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/ready", summary="A search is answered at once")
    async def ready() -> JSONResponse:
        return JSONResponse(await service.thread(service.ready))

    @routes.get("/versions", summary="Who is live, since when, and who waits")
    async def versions() -> JSONResponse:
        return JSONResponse(await service.thread(service.versions))

    @routes.get("/shadow", summary="What shadowed searches and interleaved answers say of a staged version")
    async def shadow(version: str | None = None) -> JSONResponse:
        with service.place():  # it reads all that was written down
            return JSONResponse(await service.thread(service.shadow, version))

    @routes.get("/limits", summary="What one request may ask for")
    async def told() -> dict[str, Any]:
        values = {m: {k: limits.values[k] for k in modalities.get(m).request_limits} for m in modalities.names()}
        return {
            "max_bytes": limits.max_bytes,
            "max_k": limits.max_k,
            "max_filter": limits.max_filter,
            "max_concurrent": limits.max_concurrent,
            "values": values,
        }

    @routes.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        def document() -> tuple[bytes, str]:
            counts = service.metrics
            counts.live.clear()
            live = service.collection.live
            if live is not None:
                counts.live.labels(live, service.collection.layout.record(live)["fingerprint"]).set(1)
            counts.items.set(len(service.collection.catalog))
            return counts.exposition()

        data, mime = await service.thread(document)
        return Response(data, headers={"Content-Type": mime})

    @routes.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/page/" if service.settings.page else "/openapi.json")


UNKNOWN = "application/octet-stream"
SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
