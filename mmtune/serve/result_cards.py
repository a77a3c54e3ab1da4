"""What the search page shows of an item: its title, its values and its metadata, and how its rank differs between two versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.data.item_title import item_title
from mmtune.errors import Rejected
from mmtune.html.render import render_macro, trusted
from mmtune.serve.error_responses import RequestError
from mmtune.serve.responses import content_url
from mmtune.serve.schemas import SearchDocument

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmtune.index.item_catalog import Item
    from mmtune.serve.service import Service

METADATA_SHOWN = 3
GRID_SIDE, PANEL_SIDE = 320, 1024
"""Largest side of pictures in the grid and in the panel of one item, in pixels."""
TEMPLATE = "search_results.html.j2"


@dataclass(frozen=True)
class RankChange:
    """How the rank of an item differs: "up" or "down" by `ranks`, "same", "new" (not in the live results) or "gone" (only there)."""

    kind: str
    ranks: int = 0


@dataclass(frozen=True)
class View:
    """A value that the page loads when it comes into view. url: its HTML; original: its bytes as stored."""

    modality: str
    url: str
    original: str


@dataclass(frozen=True)
class ItemView:
    """An item, as shown.

    text: its text, where the title is not its beginning
    views: values that are no texts
    metadata: {column: value}, without the columns that only repeat the title
    brief: the first METADATA_SHOWN of these values, for a tile; numbers, true and false with the name of their column
    """

    id: str
    title: str
    text: str
    views: list[View]
    metadata: dict[str, str]
    brief: list[str]


@dataclass(frozen=True)
class Tile:
    """A result in the grid. rank: from 1; score: None in a sample that nobody searched for; change: see `RankChange`."""

    item: ItemView
    rank: int
    score: float | None = None
    matched: str | None = None
    change: RankChange | None = None


@dataclass
class Ranking:
    """The results of one version. error: why there are none; side: "live" or "beside"."""

    side: str
    version: str = ""
    query: str = ""
    milliseconds: float = 0.0
    tiles: list[Tile] = field(default_factory=list)
    error: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """{kind of change: number of results}."""
        out: dict[str, int] = {}
        for tile in self.tiles:
            if tile.change is not None:
                out[tile.change.kind] = out.get(tile.change.kind, 0) + 1
        return out


class ResultCards:
    """Prepares items for the page. A cache keeps the titles and the HTML of the last `capacity` values."""

    def __init__(self, service: "Service", capacity: int = 1024):
        self.service = service
        self._html = lru_cache(capacity)(self._draw)
        self._text = lru_cache(4 * capacity)(self._read_text)

    def _draw(self, id: str, modality: str, side: int, content: int) -> "Markup":
        """Render one value. `content` is used only as part of the cache key: when a value changes, its content label does too."""
        kind = modalities.get(modality)
        data, _ = self.service.value(id, modality)
        if kind.language:
            return trusted(kind.to_html(data))
        return trusted(kind.view_html(data, id, side))

    def _read_text(self, id: str, modality: str, content: int) -> str:
        try:
            return self.service.value(id, modality)[0].decode("utf-8", "replace").strip()
        except RequestError:
            return ""

    def view(self, id: str, modality: str, side: int) -> "Markup":
        """Render one value of an item: a picture, a player, a text. Raises RequestError 404 or 410 if there is none."""
        item = self.service.items([id]).get(id)
        if item is None or modality not in item.contents:
            raise RequestError(404, "no_value", f"item {id[:200]!r} has no {modality[:80]}")
        try:
            return self._html(id, modality, side, item.contents[modality][0])
        except (Rejected, NotImplementedError) as e:
            return render_macro(TEMPLATE, "unreadable_value", modality, str(e) or "this value cannot be shown")

    def item_view(self, item: "Item") -> ItemView:
        """Choose an item's title, and list its values and metadata."""
        texts = [m for m in modalities.names() if m in item.contents and modalities.get(m).language]
        text = self._text(item.id, texts[0], item.contents[texts[0]][0]) if texts else ""
        title, column = item_title(item.meta, text, item.id)
        metadata = {"group": item.group, **{k: v for k, v in item.meta.items() if k not in ("group", column)}}
        shown = {k: _shown(v) for k, v in metadata.items() if v not in (None, "") and _letters(_shown(v)) != _letters(title)}
        brief = [v if isinstance(metadata[k], str) and v not in ("true", "false") else f"{k} {v}" for k, v in shown.items()]
        views = [
            View(m, f"/page/view?{_arguments(item, m)}", content_url(item.id, m))
            for m in modalities.names()
            if m in item.contents and m not in texts
        ]
        rest = text if text and not text.startswith(title.removesuffix(" …")) or len(text) > len(title) else ""
        return ItemView(item.id, title, rest, views, shown, brief[:METADATA_SHOWN])

    def tiles(self, document: SearchDocument, changes: Mapping[str, RankChange]) -> list[Tile]:
        """The results of a search, best first."""
        items = self.service.items([r["id"] for r in document["results"]])
        tiles = []
        for rank, result in enumerate(document["results"], 1):
            if (item := items.get(result["id"])) is not None:  # else it was deleted meanwhile
                view = self.item_view(item)
                tiles.append(Tile(view, rank, result["score"], result["modality"], changes.get(item.id)))
        return tiles


def _arguments(item: "Item", modality: str) -> str:
    """Arguments of a view. `v` makes the URL another one when the value changes, so that browsers may keep it."""
    from urllib.parse import urlencode

    return urlencode({"id": item.id, "modality": modality, "v": f"{item.contents[modality][0] & 0xFFFFFFFF:x}"})


def _letters(text: str) -> str:
    """The letters and digits of a text in lower case: equal for "Granny-Smith" and "Granny Smith"."""
    return "".join(c for c in text.lower() if c.isalnum())


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def rank_changes(live: Sequence[str], other: Sequence[str]) -> tuple[dict[str, RankChange], dict[str, RankChange]]:
    """Compare two rankings of ids. Returns {id: change} for the results of each: "gone" in the first, the others in the second."""
    rank = {id: n for n, id in enumerate(live)}
    in_other = set(other)
    gone = {id: RankChange("gone") for id in live if id not in in_other}
    changes = {}
    for n, id in enumerate(other):
        by = rank[id] - n if id in rank else 0
        changes[id] = (
            RankChange("new") if id not in rank else RankChange("up" if by > 0 else "down" if by < 0 else "same", abs(by))
        )
    return gone, changes
