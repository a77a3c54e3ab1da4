"""Verdicts: each question is answered by its numbers and an interval, and by nothing else."""

import json
import time
from collections import Counter

import numpy as np
import pytest

from mmtune.data.shards.dataset import open_data
from mmtune.index.monitoring.click_through import clicked_searches
from mmtune.index.monitoring.gate_queries import read_gate_queries
from mmtune.index.monitoring.health import check_health
from mmtune.index.monitoring.health_days import latency_ratio
from mmtune.index.monitoring.probe_log import probe_log, run_probe
from mmtune.index.monitoring.traffic_counts import TrafficCounts, TrafficKey, iso, latency_bin, score_bin
from mmtune.index.monitoring.traffic_history import DAY, HOUR, TrafficHistory
from mmtune.runtime.files import append_jsonl
from tests.support.corpora import packed
from tests.support.index_helpers import COLUMNS, coll_fixture, shelf_fixture  # noqa: F401

NOW = float(int(time.time()))


def hours(days, seconds=0.02, searches=20, version="v1", now=NOW, **values):
    """Counts of each hour of the days before `now`, of which the last is 0."""
    out = []
    for day in days:
        for hour in range(1, 24):
            key = TrafficKey(int(now - day * DAY - hour * HOUR) // 300 * 300, version, "text")
            one = TrafficCounts(
                key, searches=searches, scores=Counter({30: searches}), latency=Counter({latency_bin(seconds): searches})
            )
            for name, value in values.items():
                setattr(one, name, value)
            out.append(one)
    return out


@pytest.fixture
def history(coll):
    return TrafficHistory(coll.path)


def line_of(coll, name):
    (line,) = [x for x in check_health(coll.layout, NOW).lines if x.name == name]
    return line


def test_nothing_is_known_at_first(coll):
    report = check_health(coll.layout, NOW)
    assert report.verdict == "unknown" and {x.verdict for x in report.lines} == {"unknown"} and len(report.days) == 31


def test_a_well_month(coll, history, shelf):
    coll.promote("v2", queries=open_data(packed(shelf["root"], 40, 5, COLUMNS)), force=True, why="a test")
    coll.rollback("a test")
    assert read_gate_queries(coll.layout, "v2").samples.keys() == {"image", "text"}
    history.append(hours(range(30)), NOW)
    run_probe(coll.layout, coll.catalog, coll.pool)
    report = check_health(coll.layout, NOW)
    verdicts = {x.name: x.verdict for x in report.lines}
    assert report.verdict == "ok"
    assert verdicts == {
        "searches": "ok",
        "failed searches": "ok",
        "empty answers": "ok",
        "low-score answers": "unknown",  # v1 was promoted without queries
        "latency": "ok",
        "recall of the index": "ok",
        "queries": "unknown",
        "clicks": "unknown",
    }
    assert "460 in the last 24 hours; usually 460" in line_of(coll, "searches").value
    assert "--queries DATA" in line_of(coll, "queries").action
    assert sum(d.searches for d in report.days) == 30 * 460 and report.days[-2].recall in (None, 1.0)


@pytest.mark.parametrize(("errors", "verdict"), [(0, "ok"), (5, "ok"), (40, "attention")])
def test_failed_searches(coll, history, errors, verdict):
    """Of 460: 1.1% can be 1%, 8% cannot."""
    history.append(hours([0]) + [TrafficCounts(TrafficKey(int(NOW - HOUR), "v1", ""), errors=errors)], NOW)
    line = line_of(coll, "failed searches")
    assert line.verdict == verdict and bool(line.action) == (verdict == "attention")


@pytest.mark.parametrize(("empty", "verdict"), [(1, "ok"), (4, "attention")])
def test_empty_answers(coll, history, empty, verdict):
    history.append(hours([0], empty=empty), NOW)
    assert line_of(coll, "empty answers").verdict == verdict


def test_no_search_today_after_days_with_searches(coll, history):
    history.append(hours([3, 4, 5]), NOW)
    line = line_of(coll, "searches")
    assert line.verdict == "attention" and "usually 460" in line.value


@pytest.mark.parametrize(("now", "verdict"), [(0.04, "ok"), (0.5, "attention")])
def test_latency(coll, history, now, verdict):
    """0.04 s is less than 1.5 times 0.03 s; 0.5 s is not."""
    history.append(hours([0], now) + hours(range(1, 8), 0.03), NOW)
    line = line_of(coll, "latency")
    assert line.verdict == verdict, line
    assert f"p50 {1000 * now:.0f}" in line.value or abs(float(line.value.split()[1]) / (1000 * now) - 1) < 0.03


def test_the_interval_of_a_latency_ratio_covers_it():
    rng = np.random.default_rng(0)

    def period(n, scale):
        one = TrafficCounts(TrafficKey(300 * n, "v1", "text"))
        one.latency = Counter(latency_bin(s) for s in (scale * rng.lognormal(-3, 0.3, 20)).tolist())
        return one

    ratio = latency_ratio([period(n, 2.0) for n in range(50)], [period(n, 1.0) for n in range(50)], 0.95, 0.01)
    assert ratio.low < 2 < ratio.high and ratio.high / ratio.low < 1.6
    assert latency_ratio([period(0, 1.0)] * 3, [period(0, 1.0)] * 50, 0.95, 0.01) is None


def test_low_scores_and_drift(coll, history, shelf):
    from mmtune.index.monitoring.gate_queries import store_gate_queries

    store_gate_queries(coll.layout, coll.open("v1"), open_data(packed(shelf["root"], 40, 5, COLUMNS)), "held")
    gate = read_gate_queries(coll.layout, "v1").samples["text"]
    typical = score_bin(float(np.median(gate.scores)))
    spread = Counter(score_bin(float(s)) for s in gate.scores)
    history.append([c for c in hours([0], scores=spread)], NOW)
    assert line_of(coll, "low-score answers").verdict == "ok" and line_of(coll, "queries").verdict == "ok"
    history.append(hours([0], scores=Counter({typical - 60: 60})), NOW)
    low, queries = line_of(coll, "low-score answers"), line_of(coll, "queries")
    assert low.verdict == "attention" and "of the gate's queries" in low.reason
    assert queries.verdict == "attention" and "differ from the gate's" in queries.reason and "judgments" in queries.action


def test_recall(coll):
    run_probe(coll.layout, coll.catalog, coll.pool)
    assert line_of(coll, "recall of the index").verdict == "ok"
    later = [x for x in check_health(coll.layout, NOW + 3 * DAY).lines if x.name == "recall of the index"][0]
    assert later.verdict == "attention" and "two days" in later.reason
    (probe,) = probe_log(coll.path).read()
    probe_log(coll.path).append({**probe, "fault": "the store is gone", "indexes": {}})
    line = line_of(coll, "recall of the index")
    assert line.verdict == "attention" and line.reason == "the store is gone" and "index verify" in line.action
    assert check_health(coll.layout, time.time()).days[-1].recall == 0  # the day of the probe: NOW may be before midnight
    probe_log(coll.path).append({**probe, "version": "v9"})
    assert line_of(coll, "recall of the index").reason == "the store is gone"  # of the live version


def click(at, query, item="0-001", **more):
    return {"at": iso(at).replace("Z", "+00:00"), "query": query, "item": item, "kind": "click", **more}


def test_clicked_searches():
    moves = [{"at": iso(NOW - 100_000 * n), "what": "promote", "version": v} for n, v in ((9, "v1"), (5, "v2"))]
    moves += [
        {"at": iso(NOW - 100_000), "what": "rollback", "version": "v1"},
        {"at": iso(NOW), "what": "upsert", "version": None},
    ]
    start = NOW - NOW % 300
    events = [
        click(start - 800_000, "q1"),  # v1 was live
        click(start - 400_000, "q1"),  # v2 was live
        click(start - 400_000 + 1, "q1", "0-002"),  # the same search
        click(start - 400_000 + 900, "q1"),  # another search
        click(start - 300_000, "q2", version="v1"),  # the client says which
        click(start - 300_000, "q3", version="v1|v2"),
        click(start - 2_000_000, "q4"),  # before any version was live
        click(start, "i-1"),
        click(start, "i-1", "0-002"),
        click(start, "i-1", "not shown"),
        {**click(start, "q5"), "kind": "not_a_match"},
    ]
    shown = {"i-1": {"live": "v1", "staged": "v3", "teams": {"0-001": "live", "0-002": "staged"}}}
    found = clicked_searches(events, moves, shown)
    assert {v: len(t) for v, t in found.items()} == {"v1": 3, "v2": 3, "v3": 1}


def test_click_through_of_versions(coll, history):
    history.append(hours([0]) + hours([2], version="v2"), NOW)
    for n in range(100):
        append_jsonl(coll.path / "feedback.jsonl", click(NOW - 300 * n, f"q{n}", version="v1"))
    for n in range(200):
        append_jsonl(coll.path / "feedback.jsonl", click(NOW - 2 * DAY - 300 * n, f"q{n}", version="v2"))
    report = check_health(coll.layout, NOW)
    rates = {c.version: c for c in report.clicks}
    assert rates["v1"].clicked == 100 and rates["v1"].searches == 460
    assert (rates["v1"].low, rates["v1"].high) == pytest.approx((0.1821, 0.2567), abs=1e-3)
    (line,) = [x for x in report.lines if x.name == "clicks"]
    assert line.verdict == "ok"  # no version was live before v1
    pointer = coll.layout.live()
    coll.layout.set_live({**pointer, "previous": "v2"})
    line = line_of(coll, "clicks")
    assert line.verdict == "attention" and "fewer clicks" in line.reason and "rollback" in line.action


def test_the_commands(coll, history, shelf, tmp_path, capsys):
    from mmtune.cli import main

    history.append(hours([0], empty=5), NOW)
    where, queries = str(coll.path), packed(shelf["root"], 40, 5, COLUMNS)
    assert main(["index", "probe", where]) == 0
    assert "image: recall@10 1.000 (0.8" in capsys.readouterr().out
    assert main(["index", "status", where]) == 0
    assert "last probe 20" in (said := capsys.readouterr().out) and "image recall@10 1.000" in said
    assert main(["index", "health", where, "--queries", queries, "--out", str(tmp_path / "x.html"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "attention" and document["gate"].startswith("packed-5-40")
    assert {x["name"] for x in document["lines"] if x["verdict"] == "attention"} == {
        "empty answers",
        "queries",
    }  # all scores are equal
    assert "Search needs attention" in (tmp_path / "x.html").read_text()
    assert main(["index", "health", where]) == 1
    assert "attention  empty answers" in (said := capsys.readouterr().out) and "-> look at the filters" in said
    few = packed(shelf["root"], 12, 6, COLUMNS)
    assert main(["index", "health", where, "--queries", few]) == 2
    assert "fewer than 20 rows" in capsys.readouterr().err
    assert main(["index", "probe", where, "-k", "0"]) == 2
