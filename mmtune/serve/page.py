"""The search page: plain HTML that the server renders, with a small script for keys, uploads, and the panel of one item.

GET /page/?text=red+shoe     a search by text or by an item; every search has a URL of its own
POST /page/                  a search by an uploaded file; nothing is stored
GET /page/item, /page/view   one item, one value of an item
The page keeps no state, so that any worker may answer. A query goes through the same checks and limits as POST /search.
"""

import asyncio
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.errors import MmtuneError
from mmtune.html.render import render
from mmtune.index.query.facets import FacetCache, Facets
from mmtune.serve.error_responses import RequestError
from mmtune.serve.page_query import FACET, ITEM, LIVE_ONLY, PageQuery, chosen, form_query, page_query
from mmtune.serve.request import RequestBody, parse_search
from mmtune.serve.responses import item_not_found_error, public_message
from mmtune.serve.result_cards import GRID_SIDE, PANEL_SIDE, ItemView, Ranking, ResultCards, Tile, rank_changes
from mmtune.serve.schemas import SearchDocument

if TYPE_CHECKING:
    from fastapi import APIRouter, Request, Response

    from mmtune.serve.service import Service

PATH = "/page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: nothing from elsewhere, no inline scripts, no inline styles, no frames around it."""
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
KEPT = {**HEADERS, "Cache-Control": "private, max-age=86400"}
"""Headers of responses whose URL changes with their content."""
ASSETS = {"style.css": ("search_page.css.j2", "text/css"), "script.js": ("search_page.js.j2", "text/javascript")}
SAMPLE = 24
"""Items that are shown before anything was searched for."""
VIEW_THREADS = 4
"""Values that are drawn at once, which bounds the memory for decoding them."""


@dataclass(frozen=True)
class QueryTab:
    """A tab of the page: a modality, or ITEM.

    language: whether its query is typed; accept: files to choose, as in HTML; records: whether a microphone can give the query
    """

    name: str
    language: bool = True
    accept: str = ""
    records: bool = False


@dataclass
class PageState:
    """What the page shows apart from results. line: one line about the collection; error: why it cannot be searched."""

    name: str
    line: str = ""
    live: str = ""
    error: str = ""
    tabs: list[QueryTab] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    staged: str = ""
    facets: Facets = field(default_factory=lambda: Facets([], 0, 0))

    def beside(self, query: PageQuery) -> str:
        """The version that is compared with the live one, or ""."""
        wanted = query.beside or self.staged
        return "" if wanted == LIVE_ONLY or wanted == self.live else wanted


class SearchPage:
    """Renders the page for one collection."""

    def __init__(self, service: "Service"):
        self.service, self.cards = service, ResultCards(service)
        self.facets = FacetCache(service.collection.catalog)
        self.name = str(service.collection.layout.manifest["name"])
        self.assets = {name: render(template) for name, (template, _) in ASSETS.items()}
        self.tags = {name: sha256(text.encode()).hexdigest()[:12] for name, text in self.assets.items()}

    def state(self) -> PageState:
        """Read the versions, the modalities that can be queried, and the metadata columns."""
        state = PageState(self.name)
        try:
            versions = self.service.versions()
            state.live, state.staged = versions["live"] or "", versions["staged"] or ""
            state.others = [v["version"] for v in reversed(versions["versions"]) if not v["live"]]
            since = str(versions["since"])[:16].replace("T", " ")
            state.line = f"{state.live} is live since {since} UTC" if state.live else "no version is live yet"
            state.facets = self.facets.get()
            queryable = self.service.queryable()
        except (MmtuneError, OSError) as e:
            state.error, queryable = public_message(e, self.service.collection.path), modalities.names()
        state.tabs = query_tabs(queryable)
        return state

    async def answer(self, query: PageQuery) -> "Response":
        """Search, and render the page with the results. Its status is that of the first search that was refused."""
        state = await self.service.run_blocking(self.state)
        rankings, status = list[Ranking](), 200
        if query.is_search:
            versions = [None, *([state.beside(query)] if state.beside(query) else [])]
            try:
                bodies = [await self.service.run_blocking(query.body, v, self.service.settings.limits) for v in versions]
                found = await asyncio.gather(*map(self._search, bodies))
            except RequestError as error:
                found = [error]
            refused = [f for f in found if isinstance(f, RequestError)]
            status = refused[0].status if refused else 200
            rankings = await self.service.run_blocking(self._rankings, found)
        sample, asked = await self.service.run_blocking(self._other_tiles, query, rankings)
        return self._response(
            "search_page.html.j2", status, state=state, query=query, rankings=rankings, sample=sample, asked=asked
        )

    async def _search(self, body: RequestBody) -> SearchDocument | RequestError:
        try:
            request = parse_search(body, self.service.settings.limits)
            with self.service.slot():
                return await self.service.search(request)
        except RequestError as error:
            self.service.metrics.refused.labels(error.code).inc()
            return error

    def _rankings(self, found: "list[SearchDocument | RequestError]") -> list[Ranking]:
        documents = [f for f in found if not isinstance(f, RequestError)]
        changes = rank_changes(*([r["id"] for r in d["results"]] for d in documents)) if len(documents) == 2 else ({}, {})
        out = []
        for side, answer, change in zip(("live", "beside"), found, changes, strict=False):
            if isinstance(answer, RequestError):
                out.append(Ranking(side, error=answer.message))
                continue
            tiles = self.cards.tiles(answer, change)
            out.append(Ranking(side, answer["version"], answer["query"], 1000 * answer["seconds"], tiles))
        return out

    def _other_tiles(self, query: PageQuery, rankings: list[Ranking]) -> tuple[list[Tile], ItemView | None]:
        """Return some items of the collection if there are no results, and the item that was the query."""
        asked = self.service.items([query.values[ITEM].strip()]) if query.values.get(ITEM) else {}
        item = next((self.cards.item_view(i) for i in asked.values()), None)
        if rankings:
            return [], item
        counts = self.service.collection.catalog.counts()
        names = modalities.non_language(m for m in modalities.names() if counts.get(m))
        items = self.service.collection.catalog.sample(names[0], SAMPLE) if names else []
        return [Tile(self.cards.item_view(i), n) for n, i in enumerate(items, 1)], item

    async def item(self, id: str) -> "Response":
        """Render the page of one item, whose main part the script shows in a panel. Raises RequestError 404."""

        def read() -> ItemView:
            if (item := self.service.items([id]).get(id)) is None:
                raise item_not_found_error(id)
            return self.cards.item_view(item)

        return self._response("search_item.html.j2", 200, name=self.name, item=await self.service.run_blocking(read))

    def _response(self, template: str, status: int, **context: object) -> "Response":
        from fastapi.responses import HTMLResponse

        limits = self.service.settings.limits
        page = render(
            template, tags=self.tags, limits=limits, ITEM=ITEM, FACET=FACET, LIVE_ONLY=LIVE_ONLY, chosen=chosen, **context
        )
        return HTMLResponse(page, status, HEADERS)


def query_tabs(queryable: list[str]) -> list[QueryTab]:
    """The tabs: modalities that are typed first, then other modalities, then items."""
    names = sorted((m for m in modalities.names() if m in queryable), key=lambda m: not modalities.get(m).language)
    tabs = []
    for name in names:
        kind = modalities.get(name)
        files = [f"{name}/*", *(f".{e}" for e in kind.extensions)]
        tabs.append(QueryTab(name, kind.language, "" if kind.language else ",".join(files), "wav" in kind.extensions))
    return [*tabs, QueryTab(ITEM)]


def page_router(service: "Service") -> "APIRouter":
    """Create the routes of the page, all of them below PATH."""
    import anyio
    import anyio.to_thread
    from fastapi import APIRouter, Request
    from fastapi.responses import HTMLResponse, Response

    routes, page = APIRouter(prefix=PATH, include_in_schema=False), SearchPage(service)
    drawing: list[anyio.CapacityLimiter] = []  # created on the event loop

    @routes.get("/")
    async def search(request: Request) -> Response:
        _refuse_embedding(request)
        try:
            query = page_query(request.query_params.multi_items())
        except RequestError as error:
            return await _refused(page, error)
        return await page.answer(query)

    @routes.post("/")
    async def upload(request: Request) -> Response:
        service.require_free_slot()
        try:
            query = await form_query(request, service.settings.limits)
        except RequestError as error:
            return await _refused(page, error)
        return await page.answer(query)

    @routes.get("/item")
    async def item(request: Request, id: str = "") -> Response:
        _refuse_embedding(request)
        return await page.item(id)

    @routes.get("/view")
    async def view(request: Request, id: str = "", modality: str = "", large: bool = False) -> Response:
        _refuse_embedding(request)
        if not drawing:
            drawing.append(anyio.CapacityLimiter(VIEW_THREADS))
        side = PANEL_SIDE if large else GRID_SIDE
        html = await anyio.to_thread.run_sync(page.cards.view, id, modality, side, limiter=drawing[0])
        return HTMLResponse(html, headers=KEPT)

    @routes.get("/{name}.{kind}")
    async def asset(name: str, kind: str) -> Response:
        file = f"{name}.{kind}"
        if file not in page.assets:
            raise RequestError(404, "not_found", "there is no such page")
        return Response(page.assets[file], media_type=ASSETS[file][1], headers=KEPT)

    return routes


async def _refused(page: SearchPage, error: RequestError) -> "Response":
    """The page, with the message of a query that could not be read."""
    state = await page.service.run_blocking(page.state)
    page.service.metrics.refused.labels(error.code).inc()
    rankings = [Ranking("live", error=error.message)]
    return page._response(
        "search_page.html.j2", error.status, state=state, query=PageQuery(), rankings=rankings, sample=[], asked=None
    )


def _refuse_embedding(request: "Request") -> None:
    """Raise RequestError 403 for a request that another site's page makes in the background, e.g. as the URL of a picture.

    Following a link from another site is allowed.
    """
    headers = request.headers
    if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        raise RequestError(403, "other_site", "requests from pages of another site are refused")
