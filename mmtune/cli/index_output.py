"""Format the results of `mmtune index` as text."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from mmtune.cli.printable import printable
from mmtune.contracts import JsonObject

if TYPE_CHECKING:
    from mmtune.index.collection_results import (
        BuildResult,
        GateCheck,
        Preference,
        PromotionResult,
        SearchResponse,
        ShadowReport,
        UpsertResult,
    )
    from mmtune.index.monitoring.canary_probe import ProbeResult
    from mmtune.index.monitoring.health import HealthReport
    from mmtune.index.release.cost import CostEstimate
    from mmtune.index.shared_embedding import SharedEmbeddingResult
    from mmtune.index.status import CollectionStatus


def built(done: "BuildResult") -> str:
    """Format the result of a build, with the command to run next."""
    indexes = ", ".join(f"{m} ({i['index']}, {done.vectors[m]:,} vectors)" for m, i in done.index.items())
    loaded = done.loaded.behind if done.loaded else {}
    behind = "".join(f"\n{v} is behind: {why}" for v, why in loaded.items())
    live = f"{done.live} is live" if done.live else "no version is live yet"
    return (
        f"{done.version}: {done.items:,} items embedded by {done.fingerprint} in {done.seconds:.1f} s; {indexes}; "
        f"{done.embedded:,} embedded now, {done.reused:,} reused{behind}\n{live}; next: {done.next}"
    )


def embedded(done: "SharedEmbeddingResult", collection: str) -> str:
    """Format the result of `mmtune index embed`."""
    lines = [
        f"{m}: {c.rows:,} rows with {c.contents:,} distinct contents, {c.embedded:,} embedded by this process; {c.missing:,} "
        f"rows without {m}"
        for m, c in done.counts.items()
    ]
    return "\n".join([f"{collection}  {done.fingerprint}  {done.dim} dimensions", *lines])


def upserted(done: "UpsertResult") -> str:
    """Format the result of an upsert."""
    lines = [f"{done.new} new, {done.changed} changed, {done.same} unchanged, {len(done.rejected)} rejected"]
    lines += [printable(f"rejected {r.id!r}: {r.reason}") for r in done.rejected[:10]]
    return "\n".join([*lines, *(f"{v} is behind: {why}" for v, why in done.behind.items())])


def plan(cost: "CostEstimate") -> str:
    """Format a cost estimate."""
    price = "" if cost.price is None else f", price {cost.price:.2f} at {cost.price_per_hour:g} per hour"
    seconds, size = 3600 * cost.hours, cost.bytes
    time = f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
    room = f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
    lines = [f"{cost.items:,} items: {time}, {room}{price}"]
    for m, x in cost.by_modality.items():
        lines.append(
            f"  {m}: {x.items:,} items at {x.per_second:,} per second (measured on {x.measured_on}), {x.index} index"
            + (f"; {x.known:,} of the items are embedded already" if x.known else "")
        )
    return "\n".join(lines)


def response(found: "SearchResponse", titles: Mapping[str, str] = MappingProxyType({})) -> str:
    """Format search results, best first: rank, score, id, group, title (see `search_titles`), metadata."""
    lines = [f"{found.version}  {1000 * found.seconds:.1f} ms"]
    for n, r in enumerate(found.results, 1):
        meta = "  ".join(f"{k}={v}" for k, v in r.meta.items())
        title = titles.get(r.id, "")
        lines.append(printable(f"{n:>3}  {r.score:.4f}  {r.id}  {r.group or ''}  {title}  {meta}".rstrip()))
    return "\n".join(lines)


def promoted(done: "PromotionResult") -> str:
    """Format the result of a promotion: the verdict, then the reasons."""
    if not done.promoted:
        scope = [_scope(done.checks.gate).strip(" ()")] if done.checks.gate and done.checks.gate.scope else []
        return "\n".join([f"NOT PROMOTED: {done.version}", *(f"- {r}" for r in done.reasons), *scope])
    gate = done.checks.gate
    head = f"{done.version} is live (before: {done.previous or 'no version'})" + (", by force" if done.forced else "")
    verdict = [f"gate: {gate.verdict}: {gate.reason}{_scope(gate)}"] if gate else []
    return "\n".join([head, *(f"- {r}" for r in done.reasons), *verdict])


def _scope(gate: "GateCheck") -> str:
    """Return which queries were ranked against how many candidates, in parentheses; "" when nothing was evaluated."""
    return f" ({gate.scope})" if gate.scope else ""


def shadow(report: "ShadowReport", preference: "Preference") -> str:
    """Format the comparison of shadow searches with live searches, and the preference from interleaving."""
    state = report.shadowing
    now = f"shadow traffic on {state.version}: {state.fraction:.0%} of the searches" if state else "no shadow traffic"
    lines = [
        f"{now}; {report.searches} compared, {report.errors} failed on the staged version, {report.dropped} not repeated because too "
        "many were waiting"
    ]
    if report.overlap is not None:
        moved = "" if report.rank_change is None else f", whose ranks differ by {report.rank_change:.1f} on average"
        lines.append(f"{report.live} -> {report.staged}: {report.overlap:.0%} of the results in common{moved}")
        lines.append(f"same first result: {report.same_first:.0%}")
        sides = (("live", report.live_ms, report.empty_live), ("staged", report.staged_ms, report.empty_staged))
        for side, ms, empty in sides:
            if ms is not None:
                lines.append(f"{side}: p50 {ms['p50']:.1f} ms, p95 {ms['p95']:.1f} ms, {empty} searches without results")
    if preference.clicked:
        low, high = preference.interval
        lines.append(
            f"interleaving: staged won {preference.staged}, live won {preference.live}, {preference.ties} ties; share won by "
            f"staged: {low:.0%} to {high:.0%} (95% confidence interval), "
            + (f"{preference.prefers} is preferred" if preference.prefers else "undecided")
        )
    return "\n".join(lines)


def status(status: "CollectionStatus") -> str:
    """Format the status of a collection: one line per version."""
    live = f"{status.live} is live since {status.since}" if status.live else "no version is live"
    lines = [f"{status.collection}: {status.items:,} items; {live}"]
    for v in status.versions:
        if v.fault:
            lines.append(f"  {v.version:<4} damaged  {v.fault}")
            continue
        mark = "live" if v.live else "previous" if v.can_roll_back_to else ""
        gate = ((v.gate or {}).get("gate") or {}).get("verdict", "")
        index = ", ".join(f"{m} {i['index']}" for m, i in v.index.items())
        behind = f"  {v.behind} changes behind" if v.behind else ""
        lines.append(
            f"  {v.version:<4} {mark:<8} {v.fingerprint}  {v.items:,} items  {v.store['kind']} ({index})  "
            f"{v.created}  {v.model}{'  gate: ' + gate if gate else ''}{behind}"
        )
    if status.shadow:
        lines.append(f"  shadow traffic on {status.shadow.version}: {status.shadow.fraction:.0%} of the searches")
    if status.probe:
        lines.append(f"  {_last_probe(status.probe)}")
    return "\n".join(lines)


def _last_probe(line: JsonObject) -> str:
    """Format the last probe as a line of the status."""
    found = ", ".join(f"{m} recall@{line['k']} {i['recall']:.3f}" for m, i in line["indexes"].items())
    wrong = "" if line["fault"] is None and all(i["ok"] for i in line["indexes"].values()) else "FAILED: "
    return printable(f"last probe {line['at'][:19]} of {line['version']}: {wrong}{line['fault'] or found}")


def probe(result: "ProbeResult") -> str:
    """Format the result of a probe: a line for each index."""
    lines = [f"{result.version}  {result.seconds:.1f} s"]
    for m, i in result.indexes.items():
        lines.append(
            f"  {m}: recall@{result.k} {i.recall:.3f} ({i.low:.3f} to {i.high:.3f}) of exact search, over {i.queries} queries; "
            f"{i.found} of {i.expected} items found by their own vector"
        )
    return "\n".join([*lines, "ok" if result.ok else printable(f"NOT OK: {result.reason}")])


def health(report: "HealthReport") -> str:
    """Format a health report: its verdict, then a line for each question, with the reason and what to do."""
    lines = [f"{report.collection}: {report.verdict}; {report.version or 'no version'} is live"]
    width = max(len(line.name) for line in report.lines)
    for line in report.lines:
        value = f"{line.value}: " if line.value else ""
        lines.append(printable(f"  {line.verdict:<9}  {line.name:<{width}}  {value}{line.reason}"))
        if line.action:
            lines.append(printable(f"  {'':<9}  {'':<{width}}  -> {line.action}"))
    return "\n".join(lines)


def journal(lines: Sequence[JsonObject]) -> str:
    """Format the audit log: one line per event."""
    return "\n".join(
        f"{x['at'][:19]}  {printable(x['who']):<10} {x['what']:<10} {x['version'] or '':<5} {_details(x)}".rstrip()
        for x in lines
    )


def _details(event: JsonObject) -> str:
    """Format the details of an event, other than who, what and when."""
    parts = []
    if event.get("items") is not None:
        parts.append(f"{event['items']:,} items" + (f" of {event['fingerprint']}" if "fingerprint" in event else ""))
    if "generation" in event:
        parts.append(f"before: {event['previous'] or 'no version'}")
    if event.get("gate"):
        parts.append(f"gate: {event['gate']['verdict']}")
    if "fraction" in event:
        parts.append(f"{event['fraction']:.0%} of the searches")
    if event.get("why"):
        parts.append(printable(f"why: {event['why']}"))
    if event.get("reasons"):
        parts.append(("forced over: " if event.get("forced") else "") + "; ".join(event["reasons"]))
    return "; ".join(parts)
