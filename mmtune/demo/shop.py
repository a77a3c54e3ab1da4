"""The demo's end: photos in a collection, and a new model that takes its search over in the open, and gives it back.

Everything is what `mmtune index` does; each step is told with the command that does it.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.index.collection import Collection

ASKED = 48  # live searches that are repeated on the staged version
TOP = 5


def story(place: Path, base: str, tuned: str, data: str, count: int = 3) -> dict[str, Any]:
    """base -> v1 -> v2 -> shadow -> gate -> promote -> rollback -> promote, in a new collection at `place` (what a killed demo
    left there goes).

    data: rows that neither model was trained on: their photos are the items, their words ask. Returns {"steps": [{"command",
    "result"}], "answers": [{"query": row, "v1": [ids], "v2": [ids]}], "verdict", "reason", "forced", "rollback_ms", "audit_log",
    "live"}. A gate that refuses is overridden with a reason, as a person could, and that is told.
    """
    from mmtune.data.shards.dataset import open_data

    shutil.rmtree(place, ignore_errors=True)
    rows, steps = open_data(data), list[dict[str, str]]()

    def told(command: str, said: str) -> None:
        steps.append({"command": f"mmtune index {command}", "result": said})

    with Collection(place, create=True) as shop:
        made = shop.build(base, data, quiet=True)
        told(f"build {place} --model {base} --data {data}", f"v1: {made['items']} photos, embedded by the base")
        shop.promote("v1", why="the first version")
        told(f"promote {place} v1", "v1 is live: nothing was live before, so there is nothing to be judged against")
        made = shop.build(tuned, quiet=True)
        told(f"build {place} --model {tuned}", f"v2: the same {made['items']} photos, embedded by the tuned model; v1 answers")
        answers = _side_by_side(shop, rows, count)
        told(f"shadow {place} v2 --fraction 1", _shadowed(shop, rows))
        done = shop.promote("v2", queries=rows, why="tuned on the fine words")
        command = f"promote {place} v2 --queries {data}"
        forced = not done["promoted"]
        if forced:
            told(command, "refused: " + "; ".join(done["reasons"]))
            why = "a small demo shows the way back, too"
            done, command = shop.promote("v2", queries=rows, force=True, why=why), f'{command} --force --why "{why}"'
        gate = done["checks"]["gate"]
        told(command, f"v2 is live; the gate on {gate['scope']}: {gate['verdict']}. {gate['reason']}")
        begin = time.perf_counter()
        shop.rollback("to see that it works")
        back = 1000 * (time.perf_counter() - begin)
        told(f'rollback {place} --why "to see that it works"', f"v1 is live again, after {back:.0f} ms; nothing was embedded")
        shop.promote("v2", queries=rows, force=forced, why="the exercise is over")
        told(command, "v2 is live again; v1 stays beside it, and takes every upsert and delete, too")
        journal = [{k: x.get(k) for k in ("at", "who", "what", "version", "why")} for x in shop.journal()]
        return {
            "collection": str(place),
            "steps": steps,
            "answers": answers,
            "verdict": gate["verdict"],
            "reason": gate["reason"],
            "forced": forced,
            "rollback_ms": round(back, 1),
            "audit_log": journal,
            "live": shop.live,
        }


def _side_by_side(shop: Collection, rows: Any, count: int) -> list[dict[str, Any]]:
    """Answers of both versions to words of `count` rows that a fixed rule spreads over the data."""
    chosen = [int((i + 0.25) * 0.6180339887498949 % 1 * len(rows)) for i in range(count)]
    words = {row: rows.read(row, "text").decode() for row in dict.fromkeys(chosen)}
    return [
        {"query": row, **{v: shop.search(text=asked, k=TOP, version=v).ids for v in ("v1", "v2")}}
        for row, asked in words.items()
    ]


def _shadowed(shop: Collection, rows: Any) -> str:
    """Live searches, repeated on v2 while v1 answers them; what that says."""
    shop.shadow("v2", 1.0)
    for row in range(0, len(rows), max(1, len(rows) // ASKED)):
        shop.search(text=rows.read(row, "text").decode(), k=TOP)
    seen = shop.shadow_report()
    shop.shadow(None)
    return (
        f"{seen['searches']} searches answered by v1 and repeated on v2: {seen['overlap']:.0%} of the answers are the same, "
        f"the first one in {seen['same_first']:.0%}"
    )


def lines(told: Mapping[str, Any]) -> list[str]:
    """For a terminal: what happened, and what to try."""
    first = f"{told['collection']}: v1 (base) -> v2 (tuned) -> rolled back in {told['rollback_ms']:.0f} ms -> {told['live']} is live"
    verdict = f"gate: {told['verdict']}{' (overridden)' if told['forced'] else ''}: {told['reason']}"
    return [first, verdict, f'try: mmtune index search {told["collection"]} --text "green bag with a wide pocket" -k 5']
