"""Click-through of each version: the share of its searches that had a click, from the feedback log.

Searches have no ids, so clicks are counted like this: all clicks on results of the same query within one period of five minutes are one
clicked search. Two visitors who send the same query within five minutes, and both click, count once.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from mmtune.contracts import JsonObject
from mmtune.index.collection_results import CollectionResult
from mmtune.index.feedback.interleave import POSITIVE_KINDS
from mmtune.index.monitoring.intervals import wilson_interval
from mmtune.index.monitoring.traffic_history import PERIOD

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class ClickThrough(CollectionResult):
    """Share of the searches of a version that had a click, with its 95% Wilson confidence interval."""

    version: str
    searches: int
    clicked: int
    share: float
    low: float
    high: float


def clicked_searches(
    events: Iterable[JsonObject], journal: Iterable[JsonObject], impressions: Mapping[str, JsonObject]
) -> dict[str, list[float]]:
    """Return {version: times of its clicked searches, Unix time, ascending}.

    events: lines of the feedback log. The version is that of the event, or that of the interleaved result, or else the version that
        was live then
    journal: lines of the audit log
    impressions: {id of an interleaved response: its line in interleave.jsonl}
    """
    moves = [(_time(x), x["version"]) for x in journal if x["what"] in ("promote", "rollback") and x["version"]]
    moves.sort()
    times, versions = [t for t, _ in moves], [v for _, v in moves]
    first: dict[tuple[str, str, int], float] = {}
    for event in events:
        if event.get("kind") not in POSITIVE_KINDS:
            continue
        at, query = _time(event), str(event["query"])
        version = event.get("version")
        if (shown := impressions.get(query)) is not None:
            team = shown["teams"].get(event["item"])
            version = None if team is None else shown[team]
        elif not isinstance(version, str) or "|" in version:  # "v1|v2": of an interleaved response that is gone
            place = bisect_right(times, at) - 1
            version = versions[place] if place >= 0 else None
        if version is not None:
            key = (version, query, int(at) // PERIOD)
            first[key] = min(at, first.get(key, at))
    out = defaultdict(list)
    for (version, _, _), at in first.items():
        out[version].append(at)
    return {version: sorted(at) for version, at in out.items()}


def click_through(version: str, searches: int, clicked: int) -> ClickThrough:
    """Return the click-through of a version; more clicks than searches count as a click on every search."""
    clicked = min(clicked, searches)
    share = clicked / searches if searches else 0.0
    return ClickThrough(version, searches, clicked, share, *wilson_interval(share, searches, LEVEL))


def _time(line: JsonObject) -> float:
    return datetime.fromisoformat(line["at"]).timestamp()
