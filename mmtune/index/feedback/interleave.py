"""Team-draft interleaving: merge the rankings of two versions into one list; the version whose items get more clicks wins.

Radlinski, Kurup, Joachims, "How does clickthrough data reflect retrieval quality?", CIKM 2008.
"""

import random
import uuid
from collections.abc import Mapping, Sequence

from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, now
from mmtune.index.collection_results import Preference
from mmtune.index.feedback.feedback import FeedbackLog
from mmtune.runtime.segmented_log import SegmentedLog

TEAMS = ("live", "staged")
LOG_BYTES, LOG_SEGMENTS = 64 << 20, 3
"""Size at which the log starts a new segment, and number of segments that are kept: about 250,000 interleaved responses."""
POSITIVE_KINDS = ("click", "match")


def draft(live: Sequence[str], staged: Sequence[str], k: int, rng: random.Random) -> list[tuple[str, str]]:
    """Merge two rankings into one list of at most k (id, team).

    In each round, a coin toss decides which team picks first; then each team adds its best id that is not in the list yet.
    """
    rankings, positions = {"live": live, "staged": staged}, {"live": 0, "staged": 0}
    out: list[tuple[str, str]] = []
    taken: set[str] = set()
    while len(out) < k:
        before = len(out)
        for team in TEAMS if rng.random() < 0.5 else reversed(TEAMS):
            ranking = rankings[team]
            while positions[team] < len(ranking) and ranking[positions[team]] in taken:
                positions[team] += 1
            if positions[team] < len(ranking) and len(out) < k:
                out.append((ranking[positions[team]], team))
                taken.add(ranking[positions[team]])
        if len(out) == before:
            break
    return out


def wilson(wins: int, count: int) -> tuple[float, float]:
    """Return the 95% Wilson confidence interval of a proportion, which is valid near 0 and 1 and for small counts."""
    from scipy.stats import binomtest

    if not count:
        return 0.0, 1.0
    interval = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


class Interleaving:
    """Interleaves results of one collection, logs the lists in COLL/interleave.jsonl, and computes the preferred version."""

    def __init__(self, layout: CollectionLayout, feedback: FeedbackLog):
        self.layout, self.feedback = layout, feedback
        self.log = SegmentedLog(layout.path / "interleave.jsonl", LOG_BYTES, LOG_SEGMENTS)

    def teams(self, version: str) -> dict[str, str]:
        """Return {"live": live version, "staged": version}. Raises DataError when `version` is live, or no version is live."""
        live = self.layout.live()["version"]
        if live is None or version == live:
            raise DataError(f"interleave {version}: needs a live version (now: {live}) and another version; name a staged one")
        self.layout.record(version)
        return {"live": live, "staged": version}

    def draft(
        self, teams: Mapping[str, str], rankings: Mapping[str, Sequence[str]], query: str, k: int, rng: random.Random
    ) -> tuple[str, list[tuple[str, str]]]:
        """Interleave the rankings and log the list. Returns (id of the impression, [(id, team)]).

        teams: see `teams`.
        rankings: {team: ranked ids}.
        query: query id of the live response; feedback on the impression is counted for this query.
        """
        drafted = draft(rankings["live"], rankings["staged"], k, rng)
        impression = f"i-{uuid.uuid4().hex}"
        line = {"at": now(), "impression": impression, "query": query, **teams, "teams": dict(drafted)}
        self.log.append(line)
        self.feedback.link(impression, query)
        return impression, drafted

    def preference(self, version: str | None = None, last_bytes: int | None = None) -> Preference:
        """Count the wins of a staged version over the version that is live now.

        version: the staged version; default: the one that was interleaved last.
        last_bytes: read only the last bytes of the logs; default: all of them.
        """
        lines = self.log.read(last_bytes)
        staged, live = version or (lines[-1]["staged"] if lines else None), self.layout.live()["version"]
        impressions = {x["impression"]: x["teams"] for x in lines if x["staged"] == staged and x["live"] == live}
        clicked: dict[str, set[str]] = {}
        for event in self.feedback.events(last_bytes):
            if event["kind"] in POSITIVE_KINDS and event["item"] in impressions.get(event["query"], {}):
                clicked.setdefault(event["query"], set()).add(event["item"])
        wins = {"live": 0, "staged": 0, "tie": 0}
        for impression, items in clicked.items():
            teams = [impressions[impression][i] for i in items]
            a, b = teams.count("live"), teams.count("staged")
            wins["live" if a > b else "staged" if b > a else "tie"] += 1
        decided = wins["live"] + wins["staged"]
        low, high = wilson(wins["staged"], decided)
        return Preference(
            live_version=live,
            staged_version=staged,
            impressions=len(impressions),
            clicked=len(clicked),
            live=wins["live"],
            staged=wins["staged"],
            ties=wins["tie"],
            share=wins["staged"] / decided if decided else None,
            interval=[low, high],
            prefers="staged" if low > 0.5 else "live" if high < 0.5 else None,
        )
