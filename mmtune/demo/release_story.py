"""The last part of the demo: build an index of photos, replace its model, roll back, and replace it again.

It calls the functions behind `mmtune index`, and reports each step together with the command that does the same.
"""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mmtune.contracts import JsonObject
from mmtune.index.collection import Collection

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

SHADOW_SEARCHES = 48  # number of searches on v1 that are repeated on v2
TOP = 5
GOLDEN_RATIO = 0.6180339887498949


class Step(TypedDict):
    """A command and what it did."""

    command: str
    result: str


class VersionAnswers(TypedDict):
    """A query (the row number of its caption) and the ids that each version found for it."""

    query: int
    v1: list[str]
    v2: list[str]


@dataclass(frozen=True)
class ReleaseStory:
    """What happened to the collection.

    steps: the commands and their results
    answers: search results of both versions
    verdict, reason: the gate's verdict
    forced: True if the gate refused and the promotion was forced
    rollback_ms: duration of the rollback in milliseconds
    audit_log: the collection's audit log
    live: the live version at the end
    """

    collection: str
    steps: list[Step]
    answers: list[VersionAnswers]
    verdict: str
    reason: str
    forced: bool
    rollback_ms: float
    audit_log: list[JsonObject]
    live: str | None

    def to_dict(self) -> JsonObject:
        """Return the story as JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Summarise the story in a few lines for the terminal, with a search to try."""
        return [
            f"{self.collection}: v1 (base) -> v2 (tuned) -> rolled back to v1 in {self.rollback_ms:.0f} ms -> "
            f"{self.live} promoted again",
            f"gate: {self.verdict}{' (overridden)' if self.forced else ''}: {self.reason}",
            f'try: mmtune index search {self.collection} --text "green bag with a wide pocket" -k 5',
        ]


def release_story(place: Path, base: str, tuned: str, data: str, count: int = 3) -> ReleaseStory:
    """Build v1 with the base and v2 with the tuned model in a new collection; shadow, gate, promote, roll back, promote.

    place: the collection's directory; if a killed demo has left one there, it is deleted first
    data: packed rows that neither model was trained on; their photos are the items, their captions the queries
    count: number of queries whose results are shown

    If the gate refuses, the promotion is forced, with a reason, so that the rollback can be shown.
    """
    from mmtune.data.shards.dataset import open_data

    shutil.rmtree(place, ignore_errors=True)
    rows, steps = open_data(data), list[Step]()

    def add_step(command: str, result: str) -> None:
        steps.append({"command": f"mmtune index {command}", "result": result})

    with Collection(place, create=True) as collection:
        built = collection.build(base, data, quiet=True)
        add_step(f"build {place} --model {base} --data {data}", f"v1: {built.items} photos, embedded by the base model")
        collection.promote("v1", why="the first version")
        add_step(f"promote {place} v1", "v1 is live; as nothing was live before, there is no gate")
        built = collection.build(tuned, quiet=True)
        add_step(
            f"build {place} --model {tuned}",
            f"v2: the same {built.items} photos, embedded by the tuned model; v1 stays live",
        )
        answers = _answers_of_versions(collection, rows, count)
        add_step(f"shadow {place} v2 --fraction 1", _shadow(collection, rows))
        done = collection.promote("v2", queries=rows, why="tuned on fine captions")
        command = f"promote {place} v2 --queries {data}"
        forced = not done.promoted
        if forced:
            add_step(command, "refused: " + "; ".join(done.reasons))
            why = "a demo shows the rollback, too"
            done, command = collection.promote("v2", queries=rows, force=True, why=why), f'{command} --force --why "{why}"'
        gate = done.checks.gate
        assert gate is not None  # there is always a gate when the live version has another model
        add_step(command, f"v2 is live; the gate on {gate.scope}: {gate.verdict}. {gate.reason}")
        begin = time.perf_counter()
        collection.rollback("to see that it works")
        rollback_ms = 1000 * (time.perf_counter() - begin)
        add_step(
            f'rollback {place} --why "to see that it works"',
            f"v1 is live again, after {rollback_ms:.0f} ms; nothing was embedded",
        )
        collection.promote("v2", queries=rows, force=forced, why="the exercise is over")
        add_step(command, "v2 is live again; v1 stays beside it and takes every upsert and delete, too")
        log = [{k: x.get(k) for k in ("at", "who", "what", "version", "why")} for x in collection.journal()]
        return ReleaseStory(
            str(place), steps, answers, gate.verdict, gate.reason, forced, round(rollback_ms, 1), log, collection.live
        )


def _answers_of_versions(collection: Collection, rows: "Data", count: int) -> list[VersionAnswers]:
    """Search both versions for the captions of `count` rows, which a fixed rule spreads over the data."""
    chosen = [int((i + 0.25) * GOLDEN_RATIO % 1 * len(rows)) for i in range(count)]
    captions = {row: rows.read(row, "text").decode() for row in dict.fromkeys(chosen)}
    return [
        {
            "query": row,
            "v1": collection.search(text=caption, k=TOP, version="v1").ids,
            "v2": collection.search(text=caption, k=TOP, version="v2").ids,
        }
        for row, caption in captions.items()
    ]


def _shadow(collection: Collection, rows: "Data") -> str:
    """Search v1 while v2 is its shadow version, and report in one sentence how much the results differ."""
    collection.shadow("v2", 1.0)
    for row in range(0, len(rows), max(1, len(rows) // SHADOW_SEARCHES)):
        collection.search(text=rows.read(row, "text").decode(), k=TOP)
    compared = collection.shadow_report()
    collection.shadow(None)
    return (
        f"{compared.searches} searches answered by v1 and repeated on v2: {compared.overlap or 0:.0%} of the results are the "
        f"same, the first one in {compared.same_first or 0:.0%}"
    )
