"""The page "Is search well today?": the lines of a health report, and a month of history as charts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmtune.html.render import render
from mmtune.index.monitoring.canary_probe import MIN_RECALL
from mmtune.index.monitoring.click_through import ClickThrough
from mmtune.index.monitoring.health import HealthReport
from mmtune.index.monitoring.health_days import HealthDay
from mmtune.index.monitoring.query_drift import MIN_DISTANCE
from mmtune.reporting.plots import Chart, Series, line_chart

HEADLINES = {
    "ok": ("Search is well", "Nothing that was measured is on the wrong side of its limit."),
    "attention": (
        "Search needs attention",
        "At least one measurement is on the wrong side of its limit, its whole interval included.",
    ),
    "unknown": ("Nothing to say yet", "Too little was measured so far."),
}
VERDICT_CLASSES = {"ok": "pass", "attention": "fail", "unknown": "inconclusive"}
"""CSS classes of the report's style sheet."""
VERSION_COLOURS = 8


@dataclass(frozen=True)
class ClickBar:
    """A click-through and its interval as positions in percent of the widest bound."""

    rate: ClickThrough
    dot: float
    start: float
    width: float


def health_page(report: HealthReport) -> str:
    """Return the page as one HTML document without scripts."""
    headline, meaning = HEADLINES[report.verdict]
    return render(
        "health.html.j2",
        report=report,
        headline=headline,
        meaning=meaning,
        mark=VERDICT_CLASSES[report.verdict],
        classes=VERDICT_CLASSES,
        charts=health_charts(report.days),
        lines=sorted(report.lines, key=lambda line: line.verdict != "attention"),  # what needs attention comes first
        clicks=click_bars(report.clicks) if any(c.clicked for c in report.clicks) else [],
        days=[d for d in reversed(report.days) if d.searches or d.recall is not None],
    )


def click_bars(rates: Sequence[ClickThrough]) -> list[ClickBar]:
    """Lay out click-through rates on a common scale that starts at 0."""
    widest = max((r.high for r in rates), default=0.0) or 1.0
    return [ClickBar(r, 100 * r.share / widest, 100 * r.low / widest, 100 * (r.high - r.low) / widest) for r in rates]


def _searches_of(version: str) -> Callable[[HealthDay], float]:
    return lambda day: float(day.versions.get(version, 0))


def health_charts(days: Sequence[HealthDay]) -> list[Chart]:
    """Return the charts of the days, of those values that were measured on at least two days."""
    versions = sorted({v for d in days for v in d.versions}, key=lambda v: (len(v), v))
    searches = [_series(days, v or "no version", f"tone{n % VERSION_COLOURS}", _searches_of(v)) for n, v in enumerate(versions)]
    drawn = [
        _chart("Searches a day", "answered searches, by version", searches),
        _chart(
            "Latency",
            "milliseconds a search; half of the searches are below p50, 95% below p95",
            [_series(days, "p95", "after", lambda d: d.p95_ms), _series(days, "p50", "before", lambda d: d.p50_ms)],
        ),
        _chart(
            "Empty, low-score and failed searches",
            "percent of the searches",
            [
                _series(days, "low score", "tone1", lambda d: _percent(d.low)),
                _series(days, "empty", "tone0", lambda d: _percent(d.empty)),
                _series(days, "failed (5xx)", "tone6", lambda d: _percent(d.errors)),
            ],
        ),
        _chart(
            "Recall of the index",
            f"against exact search, the lowest index, last probe of the day; the limit is {MIN_RECALL:g}",
            _with_limit(_series(days, "recall", "after", lambda d: d.recall), MIN_RECALL, len(days)),
        ),
        _chart(
            "Drift of the queries",
            f"distance (MMD) of the day's queries from the gate's; over {MIN_DISTANCE:g} they differ",
            _with_limit(_series(days, "MMD", "after", lambda d: d.drift), MIN_DISTANCE, len(days)),
        ),
    ]
    return [c for c in drawn if c is not None]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _series(days: Sequence[HealthDay], name: str, kind: str, value: Callable[[HealthDay], float | None]) -> Series | None:
    """Return a curve over the days with a value, numbered up to 0, today; None for fewer than two."""
    points = [(n + 1 - len(days), y) for n, d in enumerate(days) if (y := value(d)) is not None]
    if len(points) < 2:
        return None
    x, y = np.array(points, np.float64).T
    return Series(name, kind, x, y)


def _with_limit(series: Series | None, limit: float, days: int) -> list[Series | None]:
    if series is None:
        return []
    return [series, Series("limit", "faint", np.array([1.0 - days, 0.0]), np.array([limit, limit]))]


def _chart(title: str, caption: str, series: Sequence[Series | None]) -> Chart | None:
    drawn = [s for s in series if s is not None]
    if not drawn:
        return None
    return line_chart(title, caption, drawn, "days before today", from_zero=title != "Recall of the index")
