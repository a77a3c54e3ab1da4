"""Team-draft interleaving: one list drafted from two rankings; whose items are clicked is preferred.

Radlinski, Kurup, Joachims, "How does clickthrough data reflect retrieval quality?", CIKM 2008.
"""

import math
import random
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmtune.errors import DataError
from mmtune.index.layout import now
from mmtune.index.protocols import SearchResponse
from mmtune.runtime.files import append_jsonl, read_jsonl_log

if TYPE_CHECKING:
    from mmtune.index.collection import Collection

Z = 1.959963984540054  # 95%, two-sided


def draft(live: Sequence[str], staged: Sequence[str], k: int, rng: random.Random) -> list[tuple[str, str]]:
    """[(item, team)], at most k: in each round a coin says who picks first, then each team picks its best that is not taken."""
    lists, at = {"live": live, "staged": staged}, {"live": 0, "staged": 0}
    out: list[tuple[str, str]] = []
    taken: set[str] = set()
    while len(out) < k:
        before = len(out)
        for team in ("live", "staged") if rng.random() < 0.5 else ("staged", "live"):
            ranked = lists[team]
            while at[team] < len(ranked) and ranked[at[team]] in taken:
                at[team] += 1
            if at[team] < len(ranked) and len(out) < k:
                out.append((ranked[at[team]], team))
                taken.add(ranked[at[team]])
        if len(out) == before:
            break
    return out


def interleave(coll: "Collection", version: str, k: int, rng: random.Random, **query: Any) -> SearchResponse:
    """Each result says its "team" and "version"; the answer's `query` is the id of this impression, for feedback."""
    versions = rivals(coll, version)
    answers = {team: coll.search(k=k, version=name, **query) for team, name in versions.items()}
    results = {team: a.results for team, a in answers.items()}
    impression, shown = show(coll, versions, results, answers["live"].query, k, rng)
    return SearchResponse("|".join(versions.values()), "", shown, sum(a.seconds for a in answers.values()), impression)


def rivals(coll: "Collection", version: str) -> dict[str, str]:
    """{"live", "staged"}: the names of the two versions. DataError when `version` is live, or nothing is."""
    live = coll.live
    if live is None or version == live:
        raise DataError(f"interleave {version}: with the live version ({live}); name a staged one")
    coll.layout.record(version)
    return {"live": live, "staged": version}


def show(
    coll: "Collection",
    versions: dict[str, str],
    results: dict[str, list[dict[str, Any]]],
    query: str,
    k: int,
    rng: random.Random,
) -> tuple[str, list[dict[str, Any]]]:
    """Draft one list of both teams' results and keep who chose what: (the impression's id, the list)."""
    by_id = {team: {r["id"]: r for r in found} for team, found in results.items()}
    chosen = draft([r["id"] for r in results["live"]], [r["id"] for r in results["staged"]], k, rng)
    impression = f"i-{uuid.uuid4().hex}"
    line = {"at": now(), "impression": impression, "query": query, **versions, "teams": dict(chosen)}
    append_jsonl(coll.path / "interleave.jsonl", line)
    coll.feedback_log.link(impression, query)
    return impression, [{**by_id[team][name], "team": team, "version": versions[team]} for name, team in chosen]


def wilson(wins: int, count: int) -> tuple[float, float]:
    """95% interval of a share (Wilson, JASA 1927): honest at 0, at 1 and for few."""
    if not count:
        return 0.0, 1.0
    p, half = wins / count, Z * math.sqrt(wins / count * (1 - wins / count) / count + Z * Z / (4 * count * count))
    return max(0.0, (p + Z * Z / (2 * count) - half) / (1 + Z * Z / count)), min(
        1.0, (p + Z * Z / (2 * count) + half) / (1 + Z * Z / count)
    )


def preference(coll: "Collection", version: str | None = None) -> dict[str, Any]:
    """{"impressions", "clicked", "staged", "live", "ties", "share", "interval", "prefers"}: an impression is won by the team
    with more clicked items; the share is of those won by either. prefers: the side that the whole interval is on, or None."""
    path = coll.path / "interleave.jsonl"
    lines = read_jsonl_log(path)
    staged, live = version or (lines[-1]["staged"] if lines else None), coll.live
    shown = {x["impression"]: x["teams"] for x in lines if x["staged"] == staged and x["live"] == live}
    clicked: dict[str, set[str]] = {}
    for event in coll.feedback_log.events():
        if event["kind"] in ("click", "match") and event["item"] in shown.get(event["query"], {}):
            clicked.setdefault(event["query"], set()).add(event["item"])
    wins = {"live": 0, "staged": 0, "tie": 0}
    for impression, items in clicked.items():
        teams = [shown[impression][i] for i in items]
        a, b = teams.count("live"), teams.count("staged")
        wins["live" if a > b else "staged" if b > a else "tie"] += 1
    decided = wins["live"] + wins["staged"]
    low, high = wilson(wins["staged"], decided)
    return {
        "live_version": live,
        "staged_version": staged,
        "impressions": len(shown),
        "clicked": len(clicked),
        "live": wins["live"],
        "staged": wins["staged"],
        "ties": wins["tie"],
        "share": wins["staged"] / decided if decided else None,
        "interval": [low, high],
        "prefers": "staged" if low > 0.5 else "live" if high < 0.5 else None,
    }
