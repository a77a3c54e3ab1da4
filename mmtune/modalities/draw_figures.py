"""Draw figures as pictures: lines over steps, histograms, heatmaps. They are small PNGs that every experiment tracker shows."""

from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from mmtune.modalities.picture_strip import Picture

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 56, 36
"""Margins around the plotted area: values at the left, title and legend above, values below."""
COLOURS = [(31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207), (127, 127, 127)]
INK, GRID = (40, 40, 40), (225, 225, 225)
LINE_HEIGHT = 16


def lines_figure(title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]], x_label: str) -> Picture:
    """Draw lines. series: {name: (x [n], y [n])}"""
    plot = _Plot(title, list(series), x_label, [x for x, _ in series.values()], [y for _, y in series.values()])
    for number, (x, y) in enumerate(series.values()):
        plot.draw.line(plot.points(x, y), fill=COLOURS[number % len(COLOURS)], width=2)
    return plot.picture


def histograms_figure(title: str, values: Mapping[str, np.ndarray], x_label: str, bins: int = 40) -> Picture:
    """Draw histograms over each other, each as a share of its own values. values: {name: [n]}"""
    every = np.concatenate(list(values.values()))
    edges = np.linspace(float(every.min()), float(every.max()) + 1e-6, bins + 1)
    shares = [np.histogram(v, edges)[0] / max(len(v), 1) * 100 for v in values.values()]
    plot = _Plot(title, [f"{n} ({len(v):,})" for n, v in values.items()], x_label, [edges], [np.array([0.0]), *shares], "%")
    for number, share in enumerate(shares):
        steps_x, steps_y = np.repeat(edges, 2)[1:-1], np.repeat(share, 2)
        plot.draw.line(plot.points(steps_x, steps_y), fill=COLOURS[number % len(COLOURS)], width=2)
    return plot.picture


def heatmap_figure(title: str, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Picture:
    """Draw a matrix [R, C] as squares between white (its smallest value) and blue (its largest), with names of rows and columns."""
    font = PIL.ImageFont.load_default(11)
    side = max(8, min(24, 560 // max(matrix.shape)))
    margin = 150
    picture = PIL.Image.new("RGB", (margin + side * matrix.shape[1] + 12, margin + side * matrix.shape[0] + 12), "white")
    draw = PIL.ImageDraw.Draw(picture)
    low, high = float(matrix.min()), float(matrix.max())
    draw.text((8, 6), f"{title}\n{low:.2f} (white) to {high:.2f} (blue)", fill=INK, font=PIL.ImageFont.load_default(12))
    share = (matrix - low) / max(high - low, 1e-9)
    for i, row in enumerate(share):
        for j, value in enumerate(row):
            x, y = margin + j * side, margin + i * side
            colour = tuple(round(255 + (c - 255) * float(value)) for c in (8, 69, 148))
            draw.rectangle((x, y, x + side - 2, y + side - 2), fill=colour)
        draw.text((margin - 6, margin + i * side), _shortened(rows[i]), fill=INK, font=font, anchor="ra")
    for j, name in enumerate(columns):
        label = PIL.Image.new("RGB", (margin - 46, side), "white")
        PIL.ImageDraw.Draw(label).text((0, 0), _shortened(name), fill=INK, font=font)
        picture.paste(label.rotate(90, expand=True), (margin + j * side, 40))
    return picture


class _Plot:
    """An empty plot with axes, whose ranges hold all values, and a legend."""

    def __init__(
        self, title: str, names: Sequence[str], x_label: str, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], unit: str = ""
    ) -> None:
        self.picture = PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = PIL.ImageDraw.Draw(self.picture)
        font = PIL.ImageFont.load_default(12)
        self.x, self.y = _limits(xs), _limits(ys)
        for share in np.linspace(0, 1, 5):
            left = LEFT + share * (WIDTH - LEFT - RIGHT)
            down = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
            self.draw.line((LEFT, down, WIDTH - RIGHT, down), fill=GRID)
            self.draw.text((LEFT - 6, down), f"{_at(self.y, share):.3g}{unit}", fill=INK, font=font, anchor="rm")
            self.draw.text((left, HEIGHT - BOTTOM + 6), f"{_at(self.x, share):.3g}", fill=INK, font=font, anchor="ma")
        self.draw.text((WIDTH - RIGHT, HEIGHT - LINE_HEIGHT), x_label, fill=INK, font=font, anchor="ra")
        self.draw.text((8, 6), title, fill=INK, font=PIL.ImageFont.load_default(14))
        place = LEFT
        for number, name in enumerate(names):
            colour = COLOURS[number % len(COLOURS)]
            self.draw.rectangle((place, 34, place + 10, 44), fill=colour)
            self.draw.text((place + 14, 32), name, fill=INK, font=font)
            place += 28 + round(self.draw.textlength(name, font=font))

    def points(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
        """Positions of values in the picture."""
        across, up = ((np.asarray(v, float) - low) / (high - low) for v, (low, high) in ((x, self.x), (y, self.y)))
        left, down = LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return list(zip(left.tolist(), down.tolist(), strict=True))


def _limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    every = np.concatenate([np.asarray(v, float) for v in values])
    low, high = float(every.min()), float(every.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _at(limits: tuple[float, float], share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])


def _shortened(name: str, longest: int = 22) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
