"""HTML of the values shown in a report. Each value is embedded in the page once, even if it is shown in several places."""

import contextlib
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.data.item_title import item_title
from mmtune.errors import DataError, Rejected
from mmtune.html.render import trusted

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmtune.data.shards.dataset import Data

BUDGET = 11_000_000  # maximum number of characters for all values of a page
REPEATABLE = 600  # HTML of at most this many characters is repeated, longer HTML is linked


class ValueCards:
    """Renders values of packed rows as HTML cards.

    The first call of `show` for a value returns its card. Later calls return a link, which the page's script replaces by a
    copy of the card. When the budget is used up, only the label of a value is shown; `unshown` counts these values.

    budget: maximum number of characters of all cards
    prefix: prefix of the HTML ids, which must be unique on the page
    """

    def __init__(self, data: "Data", budget: int = BUDGET, prefix: str = "v"):
        self.data, self.left, self.prefix = data, budget, prefix
        self._known: dict[tuple[str, int], Markup] = {}
        self._titles: dict[int, str] = {}
        self.number = self.unshown = 0

    def label(self, row: int) -> str:
        """Label of a row: its group, if it has one, and its id."""
        group = self.data.groups[row]
        return self.data.ids[row] if group is None else f"{group} ({self.data.ids[row]})"

    def is_text(self, modality: str) -> bool:
        """Whether a value of this modality is its own title."""
        return modalities.get(modality).language

    def title(self, row: int) -> str:
        """Title of a row: a column such as `title`, else its text, else its id (see `mmtune.data.item_title`)."""
        if row not in self._titles:
            text = ""
            for m in modalities.names():
                if modalities.get(m).language and m in self.data.modalities and self.data.present[m][row]:
                    with contextlib.suppress(DataError, KeyError):
                        text = self.data.read(row, m).decode("utf-8", "replace")
                    break
            self._titles[row] = item_title(self.data.meta(row), text, self.data.ids[row])[0]
        return self._titles[row]

    def show(self, row: int, modality: str) -> "Markup":
        """Return the card, or a link to the card, of the value of `modality` in row number `row`."""
        key = modality, int(self.data.labels[modality][row])
        if key in self._known:
            return self._known[key]
        try:
            fragment = modalities.get(modality).thumbnail_html(self.data.read(row, modality), self.label(row))
        except (Rejected, NotImplementedError, DataError, KeyError):
            fragment = None
        if fragment is None or len(fragment) > self.left:
            self.unshown += 1
            self._known[key] = trusted('<p class="unshown">{}</p>').format(self.label(row))
            return self._known[key]
        self.left -= len(fragment)
        if len(fragment) <= REPEATABLE:
            self._known[key] = trusted(f'<div class="card">{fragment}</div>')
            return self._known[key]
        name = f"{self.prefix}{self.number}"
        self.number += 1
        self._known[key] = trusted(f'<div class="card" data-same="{name}"><a href="#{name}">shown elsewhere</a></div>')
        return trusted(f'<div class="card" id="{name}">{fragment}</div>')
