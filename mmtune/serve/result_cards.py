"""Render search results as HTML for the search page. The templates escape all data."""

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

METADATA_CHARACTERS = 200  # metadata values are cut to this length
TEMPLATE = "search_results.html.j2"


def style_sheet() -> str:
    """CSS of the rendered results, which gradio adds to the page."""
    return render("search_page.css.j2")


class ResultCards:
    """Renders search results. A cache keeps the HTML of the last `capacity` values."""

    def __init__(self, service: "Service", capacity: int = 512):
        self.service = service
        self._card = lru_cache(capacity)(self._draw)

    def _draw(self, id: str, modality: str, content: int) -> "Markup":
        """Render one value. `content` is used only as part of the cache key: when a value changes, its content label does too."""
        try:
            data, _ = self.service.value(id, modality)
            return trusted(modalities.get(modality).thumbnail_html(data, id))
        except (RequestError, Rejected, NotImplementedError) as e:
            return render_macro(TEMPLATE, "unreadable_value", modality, str(e) or "this value cannot be shown")

    def result(self, result: ResultDocument, rank: int) -> str:
        """Render one result: rank, id, score, the item's values, group and metadata."""
        item = self.service.items([result["id"]]).get(result["id"])
        contents = item.contents if item else {}
        cards = [self._card(result["id"], m, contents[m][0]) for m in modalities.names() if m in contents]
        metadata = {"group": result["group"], **result["meta"]}
        shown = {name: str(value)[:METADATA_CHARACTERS] for name, value in metadata.items() if value is not None}
        return render_macro(TEMPLATE, "result", result["id"], rank, result["score"], cards, shown)


def page_heading(name: str, line: str) -> str:
    """Render the top of the page: the name of the collection, and one line about it."""
    return render_macro(TEMPLATE, "page_heading", name, line)


def answer_line(document: SearchDocument) -> str:
    """Render the line above a list of results: version, number of results, and time."""
    return render_macro(TEMPLATE, "answer_line", document["version"], len(document["results"]), 1000 * document["seconds"])


def error_line(message: str) -> str:
    """Render the message of a search that was refused, in place of results."""
    return render_macro(TEMPLATE, "error_line", message)
