"""The title of an item: what a page writes above its picture."""

from collections.abc import Mapping

TITLE_COLUMNS = ("title", "name", "product_name", "product", "label", "headline", "caption", "description")
"""Metadata columns that are an item's title, the best first. Without them its text is, or else its id."""
TITLE_CHARACTERS = 120


def item_title(meta: Mapping[str, object], text: str, id: str) -> tuple[str, str]:
    """Return (title in one line, the metadata column that it is from, or "").

    meta: the item's metadata
    text: the item's text, or ""
    """
    by_name = {name.lower(): name for name in reversed(list(meta))}
    for name in TITLE_COLUMNS:
        value = meta.get(by_name.get(name, ""))
        if isinstance(value, str) and value.strip():
            return cut_title(value), by_name[name]
    return cut_title(text) or id, ""


def cut_title(text: str) -> str:
    """Write a text in one line of at most TITLE_CHARACTERS, and cut it at the end of a word."""
    line = " ".join(text.split())
    return line if len(line) <= TITLE_CHARACTERS else line[:TITLE_CHARACTERS].rsplit(" ", 1)[0] + " …"
