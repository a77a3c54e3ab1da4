"""The page: ask by any modality that the live model takes, look at what two versions answer, say what is not a match.

Tabs and their components come from the modalities; gradio hands over payloads undecoded (`preprocess=False`), so that a value
goes through the same door and the same limits as one of REST.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune import modalities
from mmtune.errors import MmtuneError
from mmtune.serve.error_responses import Refusal
from mmtune.serve.request import Body, search_of
from mmtune.serve.result_cards import ResultCards, answer_line, error_line, page_heading, style_sheet
from mmtune.serve.uploads import Guard, inside

if TYPE_CHECKING:
    from fastapi import FastAPI

    from mmtune.serve.service import Service

PATH = "/page"
ROWS = 10
ALONE = "live only"
MARKS = {"match": "A match", "not_a_match": "Not a match"}
KEEP = 3600  # seconds that an upload of the page stays on disk


def mount(app: "FastAPI", service: "Service", folder: Path) -> None:
    """Put the page at /page. `folder`: where gradio keeps uploads; nobody else's, removed at the end."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when components and the page's server are made
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from starlette.routing import Mount

    page = Page(service, folder).blocks()
    gr.mount_gradio_app(
        app,
        page,
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
    assert isinstance(mounted, Mount) and mounted.path == PATH
    mounted.app = Guard(mounted.app, PATH, folder, service.settings.limits.max_bytes)


class Page:
    """The components, and what happens when they are used."""

    def __init__(self, service: "Service", folder: Path):
        self.service, self.folder, self.cards = service, folder, ResultCards(service)
        self.name = service.collection.layout.manifest["name"]
        self.rows = min(ROWS, service.settings.limits.max_k)
        self.columns: list[dict[str, Any]] = []
        self.asks: dict[str, Any] = {}

    def blocks(self) -> Any:
        """The page."""
        import gradio as gr

        with gr.Blocks(title=f"mmtune: {self.name}", analytics_enabled=False, delete_cache=(600, KEEP)) as page:
            top = gr.HTML(elem_id="top")
            with gr.Tabs():
                for m in self._order():
                    with gr.Tab(m, id=m, elem_id=f"tab-{m}") as tab:
                        label = "an item's id: what is like it?" if m == "item" else f"search by {m}"
                        make = gr.Textbox if m == "item" else modalities.get(m).input_component
                        ask = make(label=label, elem_id=f"ask-{m}")
                        go = gr.Button("Search", variant="primary", elem_id=f"go-{m}")
                    self.asks[m] = (tab, ask, go)
            with gr.Row():
                k = gr.Slider(1, self.rows, self.rows, step=1, label="results", elem_id="k")
                where = gr.Textbox(label="filter", placeholder="category = 'Apple' and price < 3", elem_id="filter")
                beside = gr.Dropdown([ALONE], value=ALONE, label="side by side with", elem_id="beside")
            with gr.Row():
                self.columns = [self._column(side) for side in ("live", "beside")]
            outputs = [x for c in self.columns for x in (c["box"], c["said"], c["found"], *c["rows"])]
            for m, (_, ask, go) in self.asks.items():
                for event in (go.click, *([ask.submit] if hasattr(ask, "submit") else [])):
                    event(
                        self._search(m),
                        [ask, k, where, beside],
                        outputs,
                        preprocess=False,
                        api_visibility="private",
                        concurrency_limit=self.service.settings.limits.max_concurrent,
                    )
            page.load(self._load, None, [top, beside, *(tab for tab, _, _ in self.asks.values())], api_visibility="private")
        return page

    def _order(self) -> list[str]:
        """Words first: what most people try."""
        return [*sorted(modalities.names(), key=lambda m: not modalities.get(m).language), "item"]

    def _column(self, side: str) -> dict[str, Any]:
        import gradio as gr

        rows = []
        with gr.Column(visible=side == "live", elem_id=side) as box:
            heading, found = gr.HTML(), gr.State([])
            for n in range(self.rows):
                with gr.Group(visible=False, elem_classes="mm-row") as row:
                    cell = gr.HTML(elem_id=f"{side}-hit-{n}")
                    buttons = []
                    with gr.Row(elem_classes="mm-marks"):
                        for kind, label in MARKS.items():
                            button = gr.Button(label, size="sm", elem_id=f"{side}-{kind}-{n}", elem_classes="mm-mark")
                            button.click(self._mark(n, kind), [found], [button], api_visibility="private")
                            buttons.append(button)
                rows += [row, cell, *buttons]
        return {"box": box, "said": heading, "found": found, "rows": rows}

    async def _load(self) -> list[Any]:
        """What depends on the moment: who is live, who can be put beside it, what can be asked."""
        import gradio as gr

        def look() -> tuple[str, list[str], list[str]]:
            try:
                state = self.service.versions()
                count = len(self.service.collection.catalog)
                others = [v["version"] for v in reversed(state["versions"]) if not v["live"]]
                since = str(state["since"])[:16].replace("T", " ")
                live = f"{state['live']} is live since {since} UTC" if state["live"] else "nothing is live yet"
                return page_heading(self.name, f"{count} items; {live}"), others, self.service.queryable()
            except (MmtuneError, OSError) as e:
                return error_line(str(e)), [], modalities.names()

        top, others, able = await self.service.thread(look)
        staged = self.service.collection.staged()
        tabs = [gr.update(visible=m == "item" or m in able) for m in self.asks]
        return [top, gr.update(choices=[ALONE, *others], value=staged if staged in others else ALONE), *tabs]

    def _search(self, modality: str) -> Callable[..., Awaitable[list[Any]]]:
        async def search(asked: Any, k: Any, where: Any, beside: Any) -> list[Any]:
            """Ask live and, if wanted, another version, at the same time."""
            import asyncio

            versions = [None] if beside in (None, "", ALONE) else [None, beside]
            answers: list[dict[str, Any] | str] = []
            try:
                fields = {"k": k, "filter": where or None}
                body = await self.service.thread(self._body, modality, asked, fields)
                questions = [
                    search_of(Body(body.values, {**body.fields, "version": v}), self.service.settings.limits) for v in versions
                ]
                for found in await asyncio.gather(*(self._ask(q) for q in questions), return_exceptions=True):
                    if isinstance(found, Refusal):
                        answers.append(found.message)
                    elif isinstance(found, BaseException):
                        raise found
                    else:
                        answers.append(found)
            except Refusal as no:
                answers = [no.message]
            return await self.service.thread(self._show, answers)

        return search

    async def _ask(self, question: Any) -> dict[str, Any]:
        with self.service.place():
            return await self.service.search(question)

    def _body(self, modality: str, asked: Any, fields: dict[str, Any]) -> Body:
        """What the component holds, as a request's body. Refusal 403, 422."""
        if modality == "item":
            return Body({}, {**fields, "item": asked if isinstance(asked, str) else ""})
        if isinstance(asked, list):
            asked = asked[0] if asked else None
        if isinstance(asked, dict):
            if not inside(asked.get("path"), self.folder):
                raise Refusal(403, "path", "only what was uploaded here is opened")
            data = Path(asked["path"]).read_bytes()
        elif isinstance(asked, str) and modalities.get(modality).language and asked.strip():
            data = asked.encode("utf-8", "replace")
        else:
            raise Refusal(422, "invalid", f"give some {modality} first")
        return Body({modality: data}, fields)

    def _show(self, answers: list[dict[str, Any] | str]) -> list[Any]:
        """Updates of both columns."""
        import gradio as gr

        out: list[Any] = []
        for n in range(len(self.columns)):
            answer = answers[n] if n < len(answers) else None
            hits = answer["results"] if isinstance(answer, dict) else []
            head = error_line(answer) if isinstance(answer, str) else answer_line(answer) if answer else ""
            marks = (
                [
                    {"query": answer["query"], "item": r["id"], "version": answer["version"], "rank": i, "score": r["score"]}
                    for i, r in enumerate(hits, 1)
                ]
                if isinstance(answer, dict)
                else []
            )
            out += [gr.update(visible=answer is not None), head, marks]
            for i in range(self.rows):
                there = i < len(hits)
                out += [gr.update(visible=there), self.cards.result(hits[i], i + 1) if there else ""]
                out += [gr.update(value=label, interactive=True) for label in MARKS.values()]
        return out

    def _mark(self, n: int, kind: str) -> Callable[..., Awaitable[Any]]:
        async def mark(found: list[dict[str, Any]]) -> Any:
            """Record it; the button says that it was."""
            import gradio as gr

            try:
                await self.service.thread(self.service.feedback, {**found[n], "kind": kind, "page": PATH})
            except (Refusal, IndexError) as e:
                return gr.update(value=str(e)[:80] or "search again", interactive=False)
            return gr.update(value=f"noted: {MARKS[kind].lower()}", interactive=False)

        return mark
