"""Convert numbers to the coordinates of charts, which a template draws. Charts are 360 units wide, to fit on a phone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 26  # margins
MAX_POINTS = 240  # maximum number of points of a curve


@dataclass
class Tick:
    """A mark on an axis, with its coordinate and label."""

    at: float
    label: str


@dataclass
class Series:
    """One curve to draw.

    name: name in the legend
    kind: CSS class; if it begins with "area", the area under the curve is filled
    x, y: the points
    """

    name: str
    kind: str
    x: np.ndarray
    y: np.ndarray


@dataclass
class Curve:
    """A curve in chart coordinates.

    name: name in the legend
    points: "x,y x,y ...", as in SVG
    kind: CSS class
    last: last value, for the legend
    dots: points with a mark
    """

    name: str
    points: str
    kind: str
    last: str = ""
    dots: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Chart:
    """One chart with its axes. `caption` describes it in one sentence."""

    title: str
    caption: str
    x: list[Tick]
    y: list[Tick]
    curves: list[Curve]
    x_name: str = ""
    width: int = WIDTH
    height: int = HEIGHT


def short_number(value: float) -> str:
    """Format a number with three significant digits, for example 0.02, 3.5 or 1,200."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round values between low and high, inclusive."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(s * base for s in (1, 2, 5, 10) if s * base >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def evenly_spaced(length: int, count: int = MAX_POINTS) -> np.ndarray:
    """Return at most `count` evenly spaced positions below `length`, including the first and the last."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def _scale(values: np.ndarray, low: float, high: float, start: float, stop: float) -> np.ndarray:
    """Map values from the range [low, high] to the coordinates [start, stop]."""
    return start + (values - low) / ((high - low) or 1.0) * (stop - start)


def line_chart(
    title: str,
    caption: str,
    series: Sequence[Series],
    x_name: str = "",
    from_zero: bool = False,
    dots: bool = False,
    legend: bool = True,
) -> Chart:
    """Lay out curves on common axes.

    from_zero: start the y axis at 0
    dots: mark every point
    legend: show the last value of each curve in the legend
    """
    xs, ys = np.concatenate([s.x for s in series]), np.concatenate([s.y for s in series])
    x_low, x_high = float(xs.min()), float(xs.max())
    y_low, y_high = 0.0 if from_zero else float(ys.min()), float(ys.max())
    padding = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
    y_low, y_high = (y_low if from_zero else y_low - padding), y_high + padding
    bottom = HEIGHT - BOTTOM

    def place_x(values: np.ndarray) -> np.ndarray:
        return _scale(values, x_low, x_high, LEFT, WIDTH - RIGHT)

    def place_y(values: np.ndarray) -> np.ndarray:
        return _scale(values, y_low, y_high, bottom, TOP)

    curves = []
    for s in series:
        px, py = place_x(s.x), place_y(s.y)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        if s.kind.startswith("area"):  # close the shape along the x axis
            points = f"{px[0]:.1f},{bottom} {points} {px[-1]:.1f},{bottom}"
        marked = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(px, py, strict=True)] if dots else []
        curves.append(Curve(s.name, points, s.kind, short_number(float(s.y[-1])) if legend else "", marked))
    x_ticks = [Tick(float(place_x(np.array(t))), short_number(t)) for t in ticks(x_low, x_high)]
    y_ticks = [Tick(float(place_y(np.array(t))), short_number(t)) for t in ticks(y_low, y_high)]
    return Chart(title, caption, x_ticks, y_ticks, curves, x_name)
