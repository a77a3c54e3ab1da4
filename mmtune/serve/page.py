"""The search page: search by any modality of the live model, compare the results of two versions, and judge results.

The modalities provide the tabs and input components. gradio passes payloads on without decoding them (`preprocess=False`), so that
values from the page go through the same checks and limits as values from the REST API.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.errors import MmtuneError
from mmtune.serve.error_responses import RequestError
from mmtune.serve.request import RequestBody, SearchRequest, parse_search
from mmtune.serve.responses import public_message
from mmtune.serve.result_cards import ResultCards, answer_line, error_line, page_heading, style_sheet
from mmtune.serve.schemas import SearchDocument
from mmtune.serve.uploads import UploadGuard, is_upload

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI
    from gradio.components import Component

    from mmtune.serve.service import Service

PATH = "/page"
MAX_ROWS = 10
LIVE_ONLY = "live only"
JUDGMENTS = {"match": "A match", "not_a_match": "Not a match"}
UPLOAD_SECONDS = 3600  # uploads from the page are deleted after this time
ITEM = "item"

Updates: TypeAlias = list[object]
"""New values and properties of gradio components, in the order of the event's outputs."""


def mount_page(app: "FastAPI", service: "Service", folder: Path) -> None:
    """Mount the search page at /page.

    folder: directory for gradio's uploads. It belongs to this server, and is deleted when the server stops
    """
    # gradio reads these variables when components and the page's server are created.
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from starlette.routing import Mount

    gr.mount_gradio_app(
        app,
        SearchPage(service, folder).blocks(),
        PATH,
        allowed_paths=[],
        blocked_paths=[],
        max_file_size=service.settings.limits.max_bytes,
        ssr_mode=False,
        show_error=False,
        footer_links=[],
        run_history=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        css=style_sheet(),
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    mounted = app.router.routes[-1]
    limits = service.settings.limits
    assert isinstance(mounted, Mount) and mounted.path == PATH
    mounted.app = UploadGuard(mounted.app, PATH, folder, limits.max_bytes, limits.max_uploads)


@dataclass
class QueryTab:
    """The tab of one modality, with the input component and the search button."""

    tab: "gradio.Tab"
    value: "Component"
    button: "gradio.Button"


@dataclass
class ResultColumn:
    """The results of one version.

    state: the feedback event of each result, to which a judgment is added
    rows: the components of all rows, in order
    """

    box: "gradio.Column"
    heading: "gradio.HTML"
    state: "gradio.State"
    rows: "list[gradio.Group | Component]"

    @property
    def outputs(self) -> "list[gradio.Column | gradio.Group | Component]":
        """Components that a search updates."""
        return [self.box, self.heading, self.state, *self.rows]


class SearchPage:
    """The components of the page, and the functions that handle their events."""

    def __init__(self, service: "Service", folder: Path):
        self.service, self.folder, self.cards = service, folder, ResultCards(service)
        self.name = service.collection.layout.manifest["name"]
        self.rows = min(MAX_ROWS, service.settings.limits.max_k)
        self.tabs: dict[str, QueryTab] = {}
        self.columns: list[ResultColumn] = []

    def blocks(self) -> "gradio.Blocks":
        """Build the page."""
        import gradio as gr

        with gr.Blocks(title=f"mmtune: {self.name}", analytics_enabled=False, delete_cache=(600, UPLOAD_SECONDS)) as page:
            top = gr.HTML(elem_id="top")
            with gr.Tabs():
                for name in self._tab_names():
                    with gr.Tab(name, id=name, elem_id=f"tab-{name}") as tab:
                        label = "similar to the item with this id" if name == ITEM else f"search by {name}"
                        make = gr.Textbox if name == ITEM else modalities.get(name).input_component
                        value = make(label=label, elem_id=f"ask-{name}")
                        button = gr.Button("Search", variant="primary", elem_id=f"go-{name}")
                    self.tabs[name] = QueryTab(tab, value, button)
            with gr.Row():
                k = gr.Slider(1, self.rows, self.rows, step=1, label="results", elem_id="k")
                condition = gr.Textbox(label="filter", placeholder="category = 'Apple' and price < 3", elem_id="filter")
                other = gr.Dropdown([LIVE_ONLY], value=LIVE_ONLY, label="side by side with", elem_id="beside")
            with gr.Row():
                self.columns = [self._column(side) for side in ("live", "beside")]
            outputs = [component for column in self.columns for component in column.outputs]
            for name, t in self.tabs.items():
                for event in (t.button.click, *([t.value.submit] if hasattr(t.value, "submit") else [])):
                    event(
                        self._search_function(name),
                        [t.value, k, condition, other],
                        outputs,
                        preprocess=False,
                        api_visibility="private",
                        concurrency_limit=self.service.settings.limits.max_concurrent,
                    )
            page.load(self._load, None, [top, other, *(t.tab for t in self.tabs.values())], api_visibility="private")
        return page

    def _tab_names(self) -> list[str]:
        """Return the names of the tabs: modalities that are typed first, then other modalities, then items."""
        return [*sorted(modalities.names(), key=lambda m: not modalities.get(m).language), ITEM]

    def _column(self, side: str) -> ResultColumn:
        import gradio as gr

        rows: list[gr.Group | Component] = []
        with gr.Column(visible=side == "live", elem_id=side) as box:
            heading, state = gr.HTML(), gr.State([])
            for n in range(self.rows):
                with gr.Group(visible=False, elem_classes="mm-row") as row:
                    cell = gr.HTML(elem_id=f"{side}-hit-{n}")
                    buttons = []
                    with gr.Row(elem_classes="mm-marks"):
                        for kind, label in JUDGMENTS.items():
                            button = gr.Button(label, size="sm", elem_id=f"{side}-{kind}-{n}", elem_classes="mm-mark")
                            button.click(self._judge_function(n, kind), [state], [button], api_visibility="private")
                            buttons.append(button)
                rows += [row, cell, *buttons]
        return ResultColumn(box, heading, state, rows)

    async def _load(self) -> Updates:
        """Called when the page is opened. Shows the existing versions, and the modalities that can be queried."""
        import gradio as gr

        def state() -> tuple[str, list[str], list[str]]:
            try:
                versions = self.service.versions()
                count = len(self.service.collection.catalog)
                others = [v["version"] for v in reversed(versions["versions"]) if not v["live"]]
                since = str(versions["since"])[:16].replace("T", " ")
                live = f"{versions['live']} is live since {since} UTC" if versions["live"] else "no version is live yet"
                return page_heading(self.name, f"{count} items; {live}"), others, self.service.queryable()
            except (MmtuneError, OSError) as e:
                return error_line(public_message(e, self.service.collection.path)), [], modalities.names()

        top, others, queryable = await self.service.run_blocking(state)
        staged = self.service.collection.staged()
        tabs = [gr.update(visible=name == ITEM or name in queryable) for name in self.tabs]
        return [top, gr.update(choices=[LIVE_ONLY, *others], value=staged if staged in others else LIVE_ONLY), *tabs]

    def _search_function(self, modality: str) -> Callable[..., Awaitable[Updates]]:
        async def search(value: object, k: object, condition: object, other: object) -> Updates:
            """Search the live version and, if another version is chosen, this version at the same time."""
            versions = [None] if other in (None, "", LIVE_ONLY) else [None, other]
            answers: list[SearchDocument | str] = []
            try:
                body = await self.service.run_blocking(
                    self._request_body, modality, value, {"k": k, "filter": condition or None}
                )
                requests = [
                    parse_search(RequestBody(body.values, {**body.fields, "version": v}), self.service.settings.limits)
                    for v in versions
                ]
                for found in await asyncio.gather(*map(self._search, requests), return_exceptions=True):
                    if isinstance(found, RequestError):
                        answers.append(found.message)
                    elif isinstance(found, BaseException):
                        raise found
                    else:
                        answers.append(found)
            except RequestError as error:
                answers = [error.message]
            return await self.service.run_blocking(self._show, answers)

        return search

    async def _search(self, request: SearchRequest) -> SearchDocument:
        with self.service.slot():
            return await self.service.search(request)

    def _request_body(self, modality: str, value: object, fields: dict[str, object]) -> RequestBody:
        """Convert the payload of a component to a request body. Raises RequestError 403 or 422."""
        if modality == ITEM:
            return RequestBody({}, {**fields, ITEM: value if isinstance(value, str) else ""})
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, dict):
            if not is_upload(value.get("path"), self.folder):
                raise RequestError(403, "path", "only uploaded files can be opened")
            data = Path(value["path"]).read_bytes()
        elif isinstance(value, str) and modalities.get(modality).language and value.strip():
            data = value.encode("utf-8", "replace")
        else:
            raise RequestError(422, "invalid", f"give a value of {modality} to search for")
        return RequestBody({modality: data}, fields)

    def _show(self, answers: Sequence[SearchDocument | str]) -> Updates:
        """Return the updates of all columns. Each answer is a search response, or the error message of a refused search."""
        import gradio as gr

        out: Updates = []
        for n in range(len(self.columns)):
            answer = answers[n] if n < len(answers) else None
            results = answer["results"] if isinstance(answer, dict) else []
            heading = error_line(answer) if isinstance(answer, str) else answer_line(answer) if answer else ""
            out += [gr.update(visible=answer is not None), heading, feedback_events(answer)]
            for i in range(self.rows):
                shown = i < len(results)
                out += [gr.update(visible=shown), self.cards.result(results[i], i + 1) if shown else ""]
                out += [gr.update(value=label, interactive=True) for label in JUDGMENTS.values()]
        return out

    def _judge_function(self, n: int, kind: str) -> Callable[..., Awaitable[object]]:
        async def judge(events: list[JsonObject]) -> object:
            """Record the judgment of result `n`, and show on the button that it was recorded."""
            import gradio as gr

            try:
                event = {**events[n], "kind": kind, "page": PATH}
                await self.service.run_blocking(self.service.feedback, event)
            except (RequestError, IndexError) as e:
                return gr.update(value=str(e)[:80] or "search again", interactive=False)
            return gr.update(value=f"recorded: {JUDGMENTS[kind].lower()}", interactive=False)

        return judge


def feedback_events(answer: SearchDocument | str | None) -> list[JsonObject]:
    """Return, for each result, the feedback event that a judgment would record, without the kind of judgment."""
    if not isinstance(answer, dict):
        return []
    return [
        {"query": answer["query"], "item": r["id"], "version": answer["version"], "rank": rank, "score": r["score"]}
        for rank, r in enumerate(answer["results"], 1)
    ]
