"""Numbers -> coordinates; the template draws them. Charts are 360 units wide, so that a phone shows them at their own size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 26
POINTS = 240  # of a curve


@dataclass
class Tick:
    at: float
    label: str


@dataclass
class Curve:
    """points: "x,y x,y ..."; kind: the CSS class; last: the value to write in the legend; dots: points to mark."""

    name: str
    points: str
    kind: str
    last: str = ""
    dots: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Chart:
    """One chart with its axes; `told` says in words what is seen."""

    title: str
    told: str
    x: list[Tick]
    y: list[Tick]
    curves: list[Curve]
    x_name: str = ""
    width: int = WIDTH
    height: int = HEIGHT


def number(value: float) -> str:
    """A short decimal: 0.02, 3.5, 1200."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def ticks(lo: float, hi: float, count: int = 4) -> list[float]:
    """About `count` round values inside [lo, hi]."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(s * base for s in (1, 2, 5, 10) if s * base >= raw * 0.999)
    first = math.ceil(lo / step - 1e-9)
    return [k * step for k in range(first, math.floor(hi / step + 1e-9) + 1)]


def _scale(values: np.ndarray, lo: float, hi: float, a: float, b: float) -> np.ndarray:
    return a + (values - lo) / ((hi - lo) or 1.0) * (b - a)


def thin(values: np.ndarray, count: int = POINTS) -> np.ndarray:
    """At most `count` positions, the first and the last among them."""
    return np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))


def chart(
    title: str,
    told: str,
    series: Sequence[tuple[str, str, np.ndarray, np.ndarray]],
    x_name: str = "",
    zero: bool = False,
    dots: bool = False,
    legend: bool = True,
) -> Chart:
    """series: (name, kind, x, y). `zero`: the y axis begins at 0; kinds that begin with "area" are closed to the base."""
    xs, ys = np.concatenate([s[2] for s in series]), np.concatenate([s[3] for s in series])
    x_lo, x_hi = float(xs.min()), float(xs.max())
    y_lo, y_hi = 0.0 if zero else float(ys.min()), float(ys.max())
    pad = (y_hi - y_lo) * 0.06 or abs(y_hi) * 0.1 or 1.0
    y_lo, y_hi = (y_lo if zero else y_lo - pad), y_hi + pad
    x0, x1, y0, y1 = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP
    curves = []
    for name, kind, x, y in series:
        px, py = _scale(x, x_lo, x_hi, x0, x1), _scale(y, y_lo, y_hi, y0, y1)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        if kind.startswith("area"):
            points = f"{px[0]:.1f},{y0} {points} {px[-1]:.1f},{y0}"
        marked = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(px, py, strict=True)] if dots else []
        curves.append(Curve(name, points, kind, number(float(y[-1])) if legend else "", marked))
    x_ticks = [Tick(float(_scale(np.array(t), x_lo, x_hi, x0, x1)), number(t)) for t in ticks(x_lo, x_hi)]
    y_ticks = [Tick(float(_scale(np.array(t), y_lo, y_hi, y0, y1)), number(t)) for t in ticks(y_lo, y_hi)]
    return Chart(title, told, x_ticks, y_ticks, curves, x_name)
