"""Changes with their intervals as bars on one common axis."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from mmtune.reporting.plots import Tick, ticks


@dataclass
class Line:
    """One row. Positions are percent of the axis; sure: +1 when the interval lies above 0, -1 below, else 0."""

    name: str
    queries: int
    base: float
    candidate: float
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    at: float
    left: float
    width: float
    sure: int
    bound: float | None
    role: str


@dataclass
class Forest:
    lines: list[Line]
    zero: float
    ticks: list[Tick]


VACUOUS = 1.99  # of 2


def told(change: Mapping[str, Any]) -> bool:
    """Whether the interval says anything: over too few things it spans all that a metric can change by, -1 to +1."""
    return bool(change["interval"][1] - change["interval"][0] < VACUOUS)


def _axis(points: list[float], changes: list[Mapping[str, Any]]) -> tuple[float, float]:
    """Ends that hold every point, and every interval but those much wider than most: a slice of few things would flatten
    all others; its bar runs off the edge and its numbers stand beside it."""
    low, high = ([c["interval"][side] for c in changes] for side in (0, 1))
    lo = min(*points, max(min(low), 2.5 * min(median(low), min(points), 0.0)))
    hi = max(*points, min(max(high), 2.5 * max(median(high), max(points), 0.0)))
    pad = (hi - lo) * 0.05 or 0.01
    return lo - pad, hi + pad


def forest(changes: Mapping[str, Mapping[str, Any]], gate: Mapping[str, Any]) -> Forest:
    """changes: name -> Change as a dict; gate as a dict: its direction and guards get a mark at their bound."""
    bounds = dict(gate.get("guards") or {})
    limits = {n: b for n, b in {**bounds, str(gate["direction"]): gate["min_gain"]}.items() if n in changes}
    lo, hi = _axis([0.0, *limits.values(), *(c["difference"] for c in changes.values())], [*changes.values()])

    def place(x: float) -> float:
        return round(min(max((x - lo) / (hi - lo), 0.0), 1.0) * 100, 2)

    lines = []
    for name, c in changes.items():
        low, high = c["interval"]
        role = "asked to rise" if name == gate["direction"] else "must not fall" if name in bounds else ""
        lines.append(
            Line(
                name,
                c["queries"],
                c["base"],
                c["candidate"],
                c["difference"],
                low,
                high,
                c["wins"],
                c["losses"],
                place(c["difference"]),
                place(low),
                round(place(high) - place(low), 2),
                (low > 0) - (high < 0),
                place(limits[name]) if name in limits else None,
                role,
            )
        )
    return Forest(lines, place(0.0), [Tick(place(t), f"{t:+.3g}" if t else "0") for t in ticks(lo, hi, 5)])
