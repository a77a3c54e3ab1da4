"""Forest plot: differences and their confidence intervals, as dots and bars on a common axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

from mmtune.contracts import JsonObject
from mmtune.reporting.plots import Tick, ticks

FULL_WIDTH = 1.99  # metrics lie in [0, 1], so an interval of width 2 covers every possible difference


class DifferenceDocument(TypedDict):
    """One `PairedDifference`, as it is stored in the comparison's JSON file."""

    queries: int
    base: float
    candidate: float
    difference: float
    interval: Sequence[float]
    wins: int
    losses: int
    clusters: int


@dataclass
class ForestRow:
    """One direction or slice. Positions on the axis are in percent of its length.

    dot: position of the difference
    bar_start, bar_width: position and length of the confidence interval
    sign: +1 if the interval lies above 0, -1 if it lies below 0, else 0
    gate_bound: position of the difference that the gate requires here, or None
    role: the gate's requirement as text
    """

    name: str
    queries: int
    base: float
    candidate: float
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    dot: float
    bar_start: float
    bar_width: float
    sign: int
    gate_bound: float | None
    role: str


@dataclass
class ForestPlot:
    """The rows, the position of zero on the axis, and the ticks of the axis."""

    rows: list[ForestRow]
    zero: float
    ticks: list[Tick]


def is_informative(difference: DifferenceDocument) -> bool:
    """Whether the interval excludes any difference. With too few clusters it covers all of them, from -1 to +1."""
    return difference["interval"][1] - difference["interval"][0] < FULL_WIDTH


def _axis(points: Sequence[float], differences: Sequence[DifferenceDocument]) -> tuple[float, float]:
    """Return the ends of an axis that contains all points, and all intervals except very wide ones.

    The very wide interval of a slice with few queries would make all other intervals too small to see. Its bar is cut off at
    the edge; its numbers are in the table.
    """
    low, high = ([d["interval"][end] for d in differences] for end in (0, 1))
    start = min(*points, max(min(low), 2.5 * min(median(low), min(points), 0.0)))
    stop = max(*points, min(max(high), 2.5 * max(median(high), max(points), 0.0)))
    padding = (stop - start) * 0.05 or 0.01
    return start - padding, stop + padding


def forest_plot(differences: Mapping[str, DifferenceDocument], gate: JsonObject) -> ForestPlot:
    """Lay out the plot.

    differences: {name of the direction or slice: difference}
    gate: the gate as plain data; its direction and its guards get a mark at the required difference
    """
    guards = dict(gate.get("guards") or {})
    bounds = {n: b for n, b in {**guards, str(gate["direction"]): gate["min_gain"]}.items() if n in differences}
    start, stop = _axis([0.0, *bounds.values(), *(d["difference"] for d in differences.values())], [*differences.values()])

    def percent(x: float) -> float:
        return round(min(max((x - start) / (stop - start), 0.0), 1.0) * 100, 2)

    rows = []
    for name, d in differences.items():
        low, high = d["interval"]
        rows.append(
            ForestRow(
                name=name,
                queries=d["queries"],
                base=d["base"],
                candidate=d["candidate"],
                difference=d["difference"],
                low=low,
                high=high,
                wins=d["wins"],
                losses=d["losses"],
                dot=percent(d["difference"]),
                bar_start=percent(low),
                bar_width=round(percent(high) - percent(low), 2),
                sign=(low > 0) - (high < 0),
                gate_bound=percent(bounds[name]) if name in bounds else None,
                role="must improve" if name == gate["direction"] else "must not get worse" if name in guards else "",
            )
        )
    return ForestPlot(rows, percent(0.0), [Tick(percent(t), f"{t:+.3g}" if t else "0") for t in ticks(start, stop, 5)])
