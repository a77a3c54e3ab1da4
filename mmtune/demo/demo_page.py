"""Show searches before and after tuning: as one PNG per search, and as one self-contained HTML page with audio players."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.html.render import render, trusted
from mmtune.modalities.spectrogram import spectrogram_picture
from mmtune.runtime import files

if TYPE_CHECKING:
    from markupsafe import Markup

INK, PAPER, PALE = (34, 36, 42), (250, 249, 246), (128, 128, 132)
RIGHT, WRONG = (46, 148, 84), (204, 62, 56)
CELL, GAP = 132, 14  # size of a result and space between results, in pixels


@dataclass(frozen=True)
class ShownItem:
    """One item to show.

    modality: "image", "audio" or "text"
    data: its original bytes
    label: text below the item
    relevant: whether it is relevant to the query; None for the query itself
    """

    modality: str
    data: bytes
    label: str
    relevant: bool | None = None


@dataclass(frozen=True)
class SearchComparison:
    """A query and its results with two models, best first."""

    query: ShownItem
    before: Sequence[ShownItem]
    after: Sequence[ShownItem]


@cache
def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size)


def tile(item: ShownItem, width: int, height: int) -> Image.Image:
    """Render the item as an RGB picture [height, width]: a photo scaled to fit, a spectrogram, or a caption."""
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    signal = modalities.get(item.modality).decode(item.data)
    if item.modality == "image":
        grow = min(width / signal.width, height / signal.height)
        size = max(1, round(signal.width * grow)), max(1, round(signal.height * grow))
        fitted = signal.resize(size, Image.Resampling.BICUBIC)
        canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    elif item.modality == "audio":
        canvas.paste(spectrogram_picture(signal.samples, signal.rate, width, height))
    else:
        _write(ImageDraw.Draw(canvas), (8, 28), str(signal), width - 16, 14, lines=5)  # leaves room for `_mark` at the top
    return canvas


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    caption: str,
    width: int,
    size: int,
    lines: int = 3,
    color: tuple[int, int, int] = INK,
) -> None:
    """Draw wrapped text. If it needs more than `lines` lines, the rest is replaced by an ellipsis."""
    per_line = max(4, int(width / (size * 0.5)))
    wrapped = textwrap.wrap(caption, per_line) or [""]
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: per_line - 3] + "..."]
    draw.multiline_text(at, "\n".join(wrapped), fill=color, font=_font(size), spacing=3)


def sheet(search: SearchComparison, top: int = 5) -> Image.Image:
    """Draw a search: the query on the left, its `top` results before and after on the right, framed green (relevant) or red."""
    row, left = CELL + 62, 84
    width = GAP * 2 + CELL + left + top * (CELL + GAP)
    canvas = Image.new("RGB", (width, 2 * row + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP + 8), "query", fill=PALE, font=_font(15))
    canvas.paste(tile(search.query, CELL, CELL), (GAP, GAP + 34))
    draw.rectangle((GAP - 1, GAP + 33, GAP + CELL, GAP + 34 + CELL), outline=PALE)
    if search.query.modality != "text":
        _write(draw, (GAP, GAP + 40 + CELL), search.query.label, CELL, 12, 4)
    for r, (side, results) in enumerate((("before", search.before), ("after", search.after))):
        y = GAP + r * row
        x0 = GAP * 2 + CELL
        draw.text((x0 + 8, y + CELL // 2 - 22), side, fill=INK, font=_font(19))
        score = f"{sum(bool(h.relevant) for h in results[:top])} of {len(results[:top])}"
        draw.text((x0 + 8, y + CELL // 2 + 2), score, fill=PALE, font=_font(15))
        for i, result in enumerate(results[:top]):
            x = x0 + left + i * (CELL + GAP)
            color = RIGHT if result.relevant else WRONG
            draw.rectangle((x - 4, y - 4, x + CELL + 3, y + CELL + 3), fill=color)
            canvas.paste(tile(result, CELL, CELL), (x, y))
            _mark(draw, (x + CELL - 22, y + 4), bool(result.relevant))
            _write(draw, (x, y + CELL + 7), result.label, CELL, 12, 3, color)
    return canvas


def before_after(searches: Sequence[SearchComparison], colors: int = 128) -> Image.Image:
    """Draw several searches below each other, with at most `colors` colours to keep the file small."""
    sheets = [sheet(search) for search in searches]
    canvas = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
    for i, picture in enumerate(sheets):
        canvas.paste(picture, (0, sum(s.height for s in sheets[:i])))
    return canvas.quantize(colors)


def _mark(draw: ImageDraw.ImageDraw, at: tuple[int, int], relevant: bool) -> None:
    """Draw a tick or a cross on a disc, for readers who cannot distinguish red and green."""
    x, y = at
    draw.ellipse((x, y, x + 18, y + 18), fill=RIGHT if relevant else WRONG, outline=(255, 255, 255))
    if relevant:
        draw.line([(x + 5, y + 9), (x + 8, y + 13), (x + 14, y + 5)], fill=(255, 255, 255), width=2, joint="curve")
    else:
        draw.line([(x + 5, y + 5), (x + 13, y + 13)], fill=(255, 255, 255), width=2)
        draw.line([(x + 5, y + 13), (x + 13, y + 5)], fill=(255, 255, 255), width=2)


def png(picture: Image.Image) -> bytes:
    """Encode the picture as PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def card(item: ShownItem) -> "Markup":
    """Return HTML that shows the item, or for audio a player with waveform and spectrogram."""
    return trusted(modalities.get(item.modality).thumbnail_html(item.data, item.label))


def write_pages(
    out: str | Path,
    searches: Mapping[str, Sequence[SearchComparison]],
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, object],
    release: JsonObject | None = None,
    top: int = 5,
) -> list[Path]:
    """Write one PNG per search and a self-contained index.html into `out`. Returns their paths, index.html first.

    searches: {heading: searches}
    before, after: {direction: {metric: value}}, with the same metrics in both
    facts: {name: value}, shown at the top of the page
    release: a ReleaseStory as a JSON document, with an additional key "searches"
    top: number of results shown per search
    """
    out, paths = Path(out), []
    for heading, group in searches.items():
        for i, search in enumerate(group, 1):
            name = "-".join(w for w in "".join(c if c.isalnum() else " " for c in heading.lower()).split())
            paths.append(out / f"search-{name}-{i}.png")
            files.write_bytes(paths[-1], png(sheet(search, top)))
    page = render(
        "demo.html.j2",
        searches=searches,
        before=before,
        after=after,
        facts=facts,
        release=release,
        top=top,
        card=card,
        metrics=list(next(iter(after.values()), {})),
    )
    files.write_text(out / "index.html", page)
    return [out / "index.html", *paths]
