"""Plain text of descriptions in HTML, as product feeds have them."""

import re
from html import unescape
from html.parser import HTMLParser

TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
ENTITY = re.compile(r"&(#\d+|#x[0-9a-fA-F]+|[a-zA-Z]\w{1,10});")
BLOCKS = {"p", "br", "div", "li", "ul", "ol", "tr", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6", "table"}
"""Elements that end a line of text; others, such as <b>, may stand within a word."""
HIDDEN = {"script", "style"}


class _PlainText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in HIDDEN
        if tag in BLOCKS:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in HIDDEN))
        if tag in BLOCKS:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def plain_text(value: str) -> str:
    """Remove the tags of HTML, decode entities, and make runs of white space one space. Other texts keep their words ("a < b")."""
    if TAG.search(value):
        parser = _PlainText()
        parser.feed(value)
        parser.close()
        value = "".join(parser.parts)
    elif ENTITY.search(value):
        value = unescape(value)
    return " ".join(value.split())
