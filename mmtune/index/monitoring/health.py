"""Is search well today? One line for each question, with a verdict, the numbers, the reason, and what to do.

No verdict is "attention" unless the whole confidence interval is on the wrong side of a limit; a question that too little traffic
cannot answer is "unknown".
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import CollectionResult
from mmtune.index.feedback.feedback import FeedbackLog
from mmtune.index.monitoring.canary_probe import MIN_RECALL
from mmtune.index.monitoring.click_through import ClickThrough, click_through, clicked_searches
from mmtune.index.monitoring.gate_queries import GateQueries, read_gate_queries
from mmtune.index.monitoring.health_days import HealthDay, health_days, latency_ratio, low_scores
from mmtune.index.monitoring.intervals import share_difference, wilson_interval
from mmtune.index.monitoring.probe_log import probe_log, probe_of_line
from mmtune.index.monitoring.query_drift import LEVEL, QueryDrift, gate_drift
from mmtune.index.monitoring.traffic_counts import TrafficCounts, iso, latency_quantile, score_bin, total
from mmtune.index.monitoring.traffic_history import DAY, TrafficHistory
from mmtune.runtime.segmented_log import log_files, read_segments

Verdict = Literal["ok", "attention", "unknown"]
DAYS = 31
"""Days that are shown."""
MAX_ERRORS = 0.01
"""Share of requests that may fail with a status of 5xx."""
MAX_EMPTY = 0.05
"""Share of searches that may have no result, if there are no gate's queries."""
MORE_EMPTY, MORE_LOW = 0.02, 0.05
"""By how much the shares of empty and of low-score answers may exceed those of the gate's queries."""
MAX_SLOWDOWN, SLACK_MS = 1.5, 20.0
"""How many times as long as in the week before the p95 may be; a p95 below SLACK_MS is never too slow."""
MAX_PROBE_AGE = 2 * DAY
FEEDBACK_BYTES = 16 << 20
"""Bytes of the feedback and interleaving logs that are read: about 80,000 clicks. If there are more, only searches since then count."""


@dataclass(frozen=True, eq=False)
class HealthLine(CollectionResult):
    """The answer to one question. action: what to do; "" if nothing."""

    name: str
    verdict: Verdict
    value: str
    reason: str
    action: str = ""


@dataclass(frozen=True, eq=False)
class HealthReport(CollectionResult):
    """The state of a served collection.

    at: time of the report (UTC, ISO 8601); version: the live version
    verdict: "attention" if a line has it, else "unknown" if every line has it, else "ok"
    days: the last month, oldest day first
    clicks: click-through of each version in that month
    drift: comparison of the queries of the last 24 hours with the gate's
    gate: where the gate's queries are from, or None
    """

    collection: str
    at: str
    version: str | None
    verdict: Verdict
    lines: Sequence[HealthLine]
    days: Sequence[HealthDay]
    clicks: Sequence[ClickThrough] = ()
    drift: Sequence[QueryDrift] = ()
    gate: str | None = None


@dataclass(frozen=True)
class _Facts:
    """What the lines are derived from. today: counts of the last 24 hours; week: those of the seven days before."""

    now: float
    path: str
    version: str
    today: Sequence[TrafficCounts]
    week: Sequence[TrafficCounts]
    gate: GateQueries | None
    probes: Sequence[JsonObject]
    drift: Sequence[QueryDrift]
    clicks: Sequence[ClickThrough]
    previous: str | None
    sums: TrafficCounts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sums", total(self.today))


def check_health(layout: CollectionLayout, now: float | None = None, days: int = DAYS) -> HealthReport:
    """Read the history of a collection and answer each question.

    now: Unix time; default: the current time

    Raises DataError for a damaged file of the history.
    """
    now = time.time() if now is None else now
    pointer = layout.live()
    version = pointer["version"] or ""
    counts = TrafficHistory(layout.path).read(now - (days - 1) * DAY - now % DAY, now + 1)
    today = [c for c in counts if c.key.start >= now - DAY]
    week = [c for c in counts if now - 8 * DAY <= c.key.start < now - DAY]
    gate = read_gate_queries(layout, version) if version else None
    drift = gate_drift(today, gate, version)
    probes = probe_log(layout.path).read()
    clicks = _clicks(layout, counts, now - days * DAY)
    facts = _Facts(now, str(layout.path), version, today, week, gate, probes, drift, clicks, pointer["previous"])
    lines = [line(facts) for line in (_traffic, _errors, _empty, _low, _latency, _recall, _drift, _click_line)]
    verdicts = {x.verdict for x in lines}
    verdict: Verdict = "attention" if "attention" in verdicts else "ok" if "ok" in verdicts else "unknown"
    table = health_days(counts, probes, version, gate, now, days)
    source = None if gate is None else gate.source or "rows"
    return HealthReport(layout.manifest["name"], iso(now), pointer["version"], verdict, lines, table, clicks, drift, source)


def _clicks(layout: CollectionLayout, counts: Sequence[TrafficCounts], since: float) -> list[ClickThrough]:
    shown = {x["impression"]: x for x in read_segments(layout.path / "interleave.jsonl", FEEDBACK_BYTES)}
    events = FeedbackLog(layout.path).events(FEEDBACK_BYTES)
    if events and sum(p.stat().st_size for p in log_files(layout.path / "feedback.jsonl")) > FEEDBACK_BYTES:
        since = max(since, datetime.fromisoformat(events[0]["at"]).timestamp())
    clicked = clicked_searches(events, audit_log.releases(layout), shown)
    out = []
    for version in layout.versions():
        own = [c for c in counts if c.key.version == version and c.key.start >= since]
        if (searches := total(own).searches) > 0:
            first = min(c.key.start for c in own)  # clicks before the first counted search have no search
            out.append(click_through(version, searches, sum(t >= first for t in clicked.get(version, []))))
    return out


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _traffic(f: _Facts) -> HealthLine:
    by_day = [total(c for c in f.week if n * DAY <= f.now - c.key.start < (n + 1) * DAY).searches for n in range(1, 8)]
    usual, searches = float(np.median([n for n in by_day if n] or [0])), f.sums.searches
    value = f"{searches:,} in the last 24 hours" + (f"; usually {usual:,.0f}" if usual else "")
    if searches:
        return HealthLine("searches", "ok", value, "the server counts every search that it answers")
    if usual >= 20:
        action = "look whether the server runs (/ready) and whether its clients still send it requests"
        return HealthLine("searches", "attention", value, "no search in 24 hours, after days with searches", action)
    return HealthLine("searches", "unknown", value, "no search was counted; `mmtune serve` counts them")


def _errors(f: _Facts) -> HealthLine:
    requests = f.sums.searches + f.sums.errors
    if not requests:
        return HealthLine("failed searches", "unknown", "", "no search was counted in the last 24 hours")
    share = f.sums.errors / requests
    low, high = wilson_interval(share, requests, LEVEL)
    value = f"{f.sums.errors:,} of {requests:,} ({_percent(low)} to {_percent(high)}); {f.sums.refused:,} refused"
    if low > MAX_ERRORS:
        action = "read the server's log: a database that is away, a full disk or a version that cannot be loaded"
        return HealthLine(
            "failed searches", "attention", value, f"more than {_percent(MAX_ERRORS)} fail with status 5xx", action
        )
    return HealthLine("failed searches", "ok", value, f"at most {_percent(MAX_ERRORS)} may fail with status 5xx")


def _empty(f: _Facts) -> HealthLine:
    if not f.sums.searches:
        return HealthLine("empty answers", "unknown", "", "no search was counted in the last 24 hours")
    share = f.sums.empty / f.sums.searches
    low, high = wilson_interval(share, f.sums.searches, LEVEL)
    value = f"{_percent(share)} of the searches ({_percent(low)} to {_percent(high)})"
    action = "look at the filters that clients send: only a filter, or an empty index, gives no result"
    if f.gate is None:
        more, reason = low > MAX_EMPTY, f"the limit is {_percent(MAX_EMPTY)}"
    else:
        scores = np.concatenate([s.scores for s in f.gate.samples.values()])
        gate = float(np.isnan(scores).mean())
        more = share_difference(share, f.sums.searches, gate, len(scores), LEVEL)[0] > MORE_EMPTY
        reason = f"{_percent(gate)} of the gate's queries; {100 * MORE_EMPTY:g} points more are too many"
    return HealthLine("empty answers", "attention" if more else "ok", value, reason, action if more else "")


def _low(f: _Facts) -> HealthLine:
    name = "low-score answers"
    low_count, scored = low_scores(f.today, f.version, f.gate)
    if f.gate is None:
        return HealthLine(name, "unknown", "", "no gate's queries are stored, so no score counts as low", _store_action(f))
    if not scored:
        return HealthLine(name, "unknown", "", "no search with a cosine similarity in the last 24 hours")
    share, (own, rows) = low_count / scored, _gate_low(f.gate)
    low, high = wilson_interval(share, scored, LEVEL)
    value = f"{_percent(share)} of the searches ({_percent(low)} to {_percent(high)})"
    reason = f"best score below that of 95% of the gate's queries; {_percent(own)} of these; {100 * MORE_LOW:g} points more are too many"
    if share_difference(share, scored, own, rows, LEVEL)[0] > MORE_LOW:
        action = "people search for what the collection lacks, or ask differently: look at the line about drift and at feedback"
        return HealthLine(name, "attention", value, reason, action)
    return HealthLine(name, "ok", value, reason)


def _gate_low(gate: GateQueries) -> tuple[float, int]:
    """Return (share of the gate's queries whose own score counts as low, their number)."""
    low = rows = 0
    for sample in gate.samples.values():
        scores = sample.scores[~np.isnan(sample.scores)]
        rows += len(scores)
        low += sum(score_bin(float(s)) < sample.low_edge for s in scores)
    return low / max(1, rows), rows


def _latency(f: _Facts) -> HealthLine:
    p50, p95 = (latency_quantile(f.sums.latency, q) for q in (0.5, 0.95))
    if p50 is None or p95 is None:
        return HealthLine("latency", "unknown", "", "no search was counted in the last 24 hours")
    value, ratio = f"p50 {p50:.1f} ms, p95 {p95:.1f} ms", latency_ratio(f.today, f.week, 0.95, LEVEL)
    if ratio is None:
        return HealthLine("latency", "unknown", value, "too few searches, or no week before, to compare with")
    reason = f"the p95 is {ratio.value:.2f} times that of the week before ({ratio.low:.2f} to {ratio.high:.2f})"
    if ratio.low > MAX_SLOWDOWN and p95 > SLACK_MS:
        action = "look at the load (mmtune_under_way, mmtune_batch_seconds), at the store's database, and at `index compact`"
        return HealthLine("latency", "attention", value, f"{reason}; the limit is {MAX_SLOWDOWN:g}", action)
    return HealthLine("latency", "ok", value, reason)


def _recall(f: _Facts) -> HealthLine:
    name, run = "recall of the index", f"run `mmtune index probe {f.path}`, or serve with --probe"
    own = [p for p in f.probes if p["version"] == f.version]
    if not own:
        return HealthLine(name, "unknown", "", "the live version was not probed yet", run)
    probe = probe_of_line(own[-1])
    value = ", ".join(f"{m} {i.recall:.3f} ({i.low:.3f} to {i.high:.3f})" for m, i in probe.indexes.items())
    value = f"recall@{probe.k} {value or 'not measured'}; {probe.at[:16].replace('T', ' ')} UTC"
    if not probe.ok:
        action = f"run `mmtune index verify {f.path}`, then `mmtune index repair {f.path}`, or `mmtune index rollback {f.path}`"
        return HealthLine(name, "attention", value, probe.reason, action)
    if f.now - datetime.fromisoformat(probe.at).timestamp() > MAX_PROBE_AGE:
        return HealthLine(name, "attention", value, "the last probe is more than two days old", run)
    return HealthLine(
        name, "ok", value, f"at least {MIN_RECALL:g} of what exact search finds, and stored items find themselves"
    )


def _drift(f: _Facts) -> HealthLine:
    name = "queries"
    if f.gate is None:
        return HealthLine(
            name, "unknown", "", "no gate's queries are stored, so queries cannot be compared with them", _store_action(f)
        )
    decided = [d for d in f.drift if d.differs is not None]
    if not decided:
        return HealthLine(name, "unknown", "", "; ".join(d.sentence for d in f.drift))
    value = "; ".join(
        f"{d.by}: MMD {d.embeddings.value:.2f}" if d.embeddings else f"{d.by}: KS {d.scores.value:.2f}" if d.scores else d.by
        for d in decided
    )
    reason = "in the last 24 hours, " + "; ".join(d.sentence for d in decided)
    if any(d.differs for d in decided):
        action = (
            "the gate no longer speaks for these queries: collect judgments (`mmtune index judgments`), add them to the gate's "
            "queries, and promote the next version on these"
        )
        return HealthLine(name, "attention", value, reason, action)
    return HealthLine(name, "ok", value, reason)


def _store_action(f: _Facts) -> str:
    return f"run `mmtune index health {f.path} --queries DATA` with the held-out rows of the gate"


def _click_line(f: _Facts) -> HealthLine:
    rates = {c.version: c for c in f.clicks}
    live, before = rates.get(f.version), rates.get(f.previous or "")
    if live is None or not any(c.clicked for c in f.clicks):
        return HealthLine("clicks", "unknown", "", "no click was recorded; clients send them to POST /feedback")
    value = "; ".join(f"{c.version} {_percent(c.share)} ({_percent(c.low)} to {_percent(c.high)})" for c in f.clicks)
    if before is None:
        return HealthLine("clicks", "ok", value, "share of searches with a click in the last month, with 95% intervals")
    low, high = share_difference(live.share, live.searches, before.share, before.searches)
    reason = f"{live.version} minus {before.version}: {100 * low:+.1f} to {100 * high:+.1f} points"
    if high < 0:
        action = f"compare both side by side on the search page, and consider `mmtune index rollback {f.path}`"
        return HealthLine("clicks", "attention", value, f"fewer clicks than with the version before; {reason}", action)
    return HealthLine("clicks", "ok", value, reason)
