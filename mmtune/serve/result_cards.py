"""Search results as HTML fragments for the page; the templates escape whatever comes from data."""

from functools import lru_cache
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.errors import Rejected
from mmtune.html.render import render, render_macro, trusted
from mmtune.serve.error_responses import RequestError
from mmtune.serve.schemas import ResultDocument, SearchDocument

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmtune.serve.service import Service

METADATA_CHARACTERS = 200  # of a metadata value; the rest is cut
TEMPLATE = "search_results.html.j2"


def style_sheet() -> str:
    """The CSS of the fragments; gradio puts it into the page."""
    return render("search_page.css.j2")


class ResultCards:
    """Draws search results. The card of a value is drawn once and kept in a cache of `capacity` cards."""

    def __init__(self, service: "Service", capacity: int = 512):
        self.service = service
        self._card = lru_cache(capacity)(self._draw)

    def _draw(self, id: str, modality: str, content: int) -> "Markup":
        """`content` is only a part of the cache's key: a changed value has another content label and is drawn anew."""
        try:
            data, _ = self.service.value(id, modality)
            return trusted(modalities.get(modality).thumbnail_html(data, id))
        except (RequestError, Rejected, NotImplementedError) as e:
            return render_macro(TEMPLATE, "unreadable_value", modality, str(e) or "cannot be shown")

    def result(self, result: ResultDocument, rank: int) -> str:
        """One result: rank, id, score, the cards of its values, group and metadata."""
        item = self.service.items([result["id"]]).get(result["id"])
        contents = item.contents if item else {}
        cards = [self._card(result["id"], m, contents[m][0]) for m in modalities.names() if m in contents]
        metadata = {"group": result["group"], **result["meta"]}
        shown = {name: str(value)[:METADATA_CHARACTERS] for name, value in metadata.items() if value is not None}
        return render_macro(TEMPLATE, "result", result["id"], rank, result["score"], cards, shown)


def page_heading(name: str, line: str) -> str:
    """The collection's name and a line about it, for the top of the page."""
    return render_macro(TEMPLATE, "page_heading", name, line)


def answer_line(document: SearchDocument) -> str:
    """The line over a column of results: version, number of results and time."""
    return render_macro(TEMPLATE, "answer_line", document["version"], len(document["results"]), 1000 * document["seconds"])


def error_line(message: str) -> str:
    """The line in place of results where a search was refused."""
    return render_macro(TEMPLATE, "error_line", message)
