"""Values shown on the page: each is embedded once, whatever the number of places that show it."""

import html
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.errors import DataError, Rejected

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

BUDGET = 11_000_000  # characters of all cards
SHORT = 600  # a fragment up to this size is simply repeated


class Cards:
    """`show` gives a value's HTML at its first place; later places get a link to it, which the page's script fills with a
    copy. Past the budget a value is only named."""

    def __init__(self, data: "Data", budget: int = BUDGET, prefix: str = "v"):
        self.data, self.left, self.prefix = data, budget, prefix
        self.known: dict[tuple[str, int], str] = {}
        self.number = self.unshown = 0

    def label(self, row: int) -> str:
        """What a row is called: its group and its id."""
        group = self.data.groups[row]
        return self.data.ids[row] if group is None else f"{group} ({self.data.ids[row]})"

    def show(self, row: int, modality: str) -> str:
        """The value of `modality` in row `row`."""
        key = modality, int(self.data.labels[modality][row])
        if key in self.known:
            return self.known[key]
        try:
            fragment = modalities.get(modality).card(self.data.read(row, modality), self.label(row))
        except (Rejected, NotImplementedError, DataError, KeyError):
            fragment = None
        if fragment is None or len(fragment) > self.left:
            self.unshown += 1
            self.known[key] = f'<p class="unshown">{html.escape(self.label(row))}</p>'
            return self.known[key]
        self.left -= len(fragment)
        if len(fragment) <= SHORT:
            self.known[key] = f'<div class="card">{fragment}</div>'
            return self.known[key]
        name = f"{self.prefix}{self.number}"
        self.number += 1
        self.known[key] = f'<div class="card" data-same="{name}"><a href="#{name}">shown elsewhere</a></div>'
        return f'<div class="card" id="{name}">{fragment}</div>'
