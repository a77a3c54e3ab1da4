"""The page of a health report: its numbers, its charts, hostile names, phones and dark mode."""

import re
from dataclasses import replace

import pytest

from mmtune.index.monitoring.click_through import click_through
from mmtune.index.monitoring.health import HealthLine, HealthReport
from mmtune.index.monitoring.health_days import HealthDay
from mmtune.reporting.health_page import click_bars, health_charts, health_page
from tests.support.browser import chromium


def day(n: int, **values) -> HealthDay:
    base = HealthDay(f"2026-11-{n:02d}", 0, {}, None, None, None, None, None, None, None)
    return replace(base, **values)


def busy(n: int) -> HealthDay:
    return day(
        n,
        searches=100 * n,
        versions={"v1": 90 * n, "v10": 10 * n},
        empty=0.01,
        low=0.05,
        errors=0.0,
        p50_ms=9.5,
        p95_ms=20.0 + n,
    )


def report(**values) -> HealthReport:
    lines = [
        HealthLine("searches", "ok", "1,200 in the last 24 hours", "the server counts every search"),
        HealthLine("recall of the index", "attention", "recall@10 0.700", "the index finds 0.700", "run `mmtune index verify`"),
        HealthLine("clicks", "unknown", "", "no click was recorded"),
    ]
    days = [day(1), *(busy(n) for n in range(2, 30)), day(30, searches=3, versions={"v10": 3}, recall=0.7, drift=0.2)]
    clicks = [click_through("v1", 1000, 200), click_through("v10", 100, 10)]
    return replace(HealthReport("shop", "2026-11-30T12:00:00Z", "v10", "attention", lines, days, clicks, (), "held"), **values)


def test_the_page_says_everything_once():
    text = health_page(report())
    for words in (
        "Search needs attention",
        "recall@10 0.700",
        "run `mmtune index verify`",
        "2026-11-30 12:00:00 UTC",
        "v10 is live",
    ):
        assert words in text, words
    assert text.count('<li class="fail">') == 1 and text.count('<li class="inconclusive">') == 1
    assert "20.0%" in text and "17.6 to 22.6" in text  # Wilson interval of 200 of 1,000
    assert text.count("<figure>") == 3  # recall and drift were measured on one day only: no curve
    assert "<script" not in text and "http" not in re.sub(r'http-equiv="refresh"', "", text)


def test_names_are_escaped():
    bad = "<script>alert(1)</script>"
    text = health_page(report(collection=bad, lines=[HealthLine("searches", "ok", bad, bad, bad)], gate=bad))
    assert "<script" not in text and text.count("&lt;script&gt;") >= 4


def test_an_empty_month_has_no_charts():
    text = health_page(report(days=[day(n) for n in range(1, 31)], clicks=[], verdict="unknown"))
    assert "Nothing to say yet" in text and "<figure>" not in text and "Clicks by version" not in text


def test_the_curves_are_in_their_days():
    charts = {c.title: c for c in health_charts(report().days)}
    searches = charts["Searches a day"]
    assert [c.name for c in searches.curves] == ["v1", "v10"]
    for chart in charts.values():
        for curve in chart.curves:
            points = [tuple(map(float, p.split(","))) for p in curve.points.split()]
            assert all(0 <= x <= chart.width and 0 <= y <= chart.height for x, y in points)
    assert len(searches.curves[0].points.split()) == 30 and len(charts["Latency"].curves[0].points.split()) == 28
    assert charts["Latency"].curves[0].last == "49"


def test_bars_share_a_scale():
    bars = click_bars([click_through("v1", 1000, 200), click_through("v2", 10, 5)])
    assert bars[1].start + bars[1].width == pytest.approx(100) and bars[0].dot < bars[0].start + bars[0].width < bars[1].dot
    assert click_bars([]) == []


@pytest.mark.slow
def test_the_page_on_a_phone_and_in_the_dark(tmp_path):
    (tmp_path / "page.html").write_text(health_page(report()))
    with chromium() as browser:
        colours = {}
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360)):
            context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page = context.new_page()
            outside = []
            page.on("request", lambda r, seen=outside: seen.append(r.url) if not r.url.startswith("file:") else None)
            page.goto((tmp_path / "page.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width and not outside
            page.locator("summary").click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            context.close()
    assert colours["light"] != colours["dark"]
