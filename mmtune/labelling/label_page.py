"""The label page: a question, three answers by button or key, and the counts."""

import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmtune.errors import DataError, MissingExtra
from mmtune.html.render import render
from mmtune.labelling.answer_log import ANSWERS, Question
from mmtune.labelling.label_session import LabelSession
from mmtune.runtime.files import is_disk_full

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

PATH = "/label"
LABELS = {"match": "Match (M or 1)", "not": "Not a match (N or 2)", "unsure": "Unsure (U or 3)"}
MAX_NAME = 60

State = dict[str, str | int]
"""What one browser tab shows: the question's query, item, direction and reason, and its number. Sent back with each answer."""


class LabelPage:
    """The components of the page, and the functions that handle their events."""

    def __init__(self, session: LabelSession, annotator: str):
        self.session, self.annotator = session, annotator

    def blocks(self) -> "gradio.Blocks":
        """Build the page."""
        import gradio as gr

        with gr.Blocks(title="mmtune label", analytics_enabled=False) as page:
            with gr.Row():
                heading = gr.HTML(elem_id="heading")
                name = gr.Textbox(label="annotator", elem_id="annotator", max_length=MAX_NAME, scale=0, min_width=200)
            question, state = gr.HTML(elem_id="question"), gr.State({"number": 0})
            outputs = [heading, question, state]
            with gr.Row():
                for kind, label in LABELS.items():
                    button = gr.Button(label, elem_id=f"answer-{kind}", variant="primary" if kind == "match" else "secondary")
                    button.click(
                        self._answer_function(kind), [state, name], outputs, api_visibility="private", show_progress="hidden"
                    )
                back = gr.Button("Back (Backspace)", elem_id="answer-back")
                back.click(self.back, [state, name], outputs, api_visibility="private", show_progress="hidden")
            name.submit(self.refresh, [state, name], outputs, api_visibility="private")
            name.blur(self.refresh, [state, name], outputs, api_visibility="private")

            def load(request: gr.Request) -> list[object]:  # gradio finds the request by this annotation, which must be a class
                return self.load(request.query_params.get("annotator"))

            page.load(load, None, [name, *outputs], api_visibility="private")
        return page

    def load(self, annotator: str | None) -> list[object]:
        """Called when the page is opened. `?annotator=NAME` says who answers."""
        name = (annotator or self.annotator).strip()[:MAX_NAME]
        return [name, *self.refresh({"number": 0}, name)]

    def refresh(self, state: State, name: str) -> list[object]:
        """Show the annotator's next question."""
        name = name.strip() or self.annotator
        number = int(state.get("number", 0)) + 1
        question = self.session.next(name)
        shown: State = {"number": number}
        if question is not None:
            shown |= {
                "query": question.query,
                "item": question.item,
                "direction": question.direction,
                "reason": question.reason,
            }
        return [self.session.heading(name), self.session.show(question, number), shown]

    def _answer_function(self, kind: str) -> "Callable[[State, str], list[object]]":
        assert kind in ANSWERS

        def answer(state: State, name: str) -> list[object]:
            """Record the answer to the question that this tab shows, and show the next one."""
            import gradio as gr

            if "query" in state:
                asked = Question(str(state["query"]), str(state["item"]), str(state["direction"]), str(state["reason"]))
                try:
                    self.session.answer(asked, kind, name.strip() or self.annotator)
                except OSError as e:
                    why = "no space left on the disk" if is_disk_full(e) else str(e.strerror)
                    raise gr.Error(f"the answer was not saved: {why}") from None
            return self.refresh(state, name)

        return answer

    def back(self, state: State, name: str) -> list[object]:
        """Take the last answer back, and ask it again."""
        self.session.take_back(name.strip() or self.annotator)
        return self.refresh(state, name)


def create_label_app(session: LabelSession, annotator: str) -> "FastAPI":
    """The application with the page at /label. Raises MissingExtra where a package is missing."""
    import importlib.util
    import os

    for name in ("gradio", "fastapi", "uvicorn", "krippendorff"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f'label needs {name}: pip install "mmtune[serve,pairs]"')
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import RedirectResponse

    app = FastAPI(openapi_url=None)
    app.add_api_route("/", lambda: RedirectResponse(PATH + "/"), methods=["GET"])
    return gr.mount_gradio_app(
        app,
        LabelPage(session, annotator).blocks(),
        PATH,
        allowed_paths=[],
        ssr_mode=False,
        show_error=True,
        footer_links=[],
        run_history=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        css=render("label.css.j2"),
        head=render("label.js.j2"),
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )


def run_label_page(session: LabelSession, annotator: str, port: int, quiet: bool) -> str:
    """Serve the page on 127.0.0.1 until SIGINT or SIGTERM; returns its URL. Raises DataError if the port is taken."""
    app = create_label_app(session, annotator)
    import uvicorn

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as e:
        bound.close()
        raise DataError(
            f"--port {port}: {getattr(e, 'strerror', None) or e}; choose another (--port 0 chooses a free one)"
        ) from None
    bound.listen(128)  # who reads the address below may connect at once
    url = f"http://127.0.0.1:{bound.getsockname()[1]}{PATH}/"
    config = uvicorn.Config(app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    handlers = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        if not quiet:
            print(f"{url}?annotator={annotator}  (Ctrl-C to stop)", file=sys.stderr, flush=True)
        server.run([bound])
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
        bound.close()
    return url
