"""A process of its own for the tests that kill and race: forks children that do one thing to a collection, with real SIGKILLs.

python -m tests.support.index_driver kills DIR COUNT SEED | clients DIR CLIENTS SEARCHES CYCLES; prints one JSON document.
The parent imports everything and computes nothing, so that a child starts in milliseconds.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from mmtune.index import item_vectors
from mmtune.index.collection import Collection
from mmtune.model.artifact import load, save
from tests.support.corpora import COLOURS
from tests.support.index_helpers import row

NAMES = list(COLOURS)
QUERIES = [f"a {shade} {name} square" for name in NAMES for shade in ("dark", "light", "pale")]


def child(work, out: Path) -> int:
    """Fork; `work()`'s JSON goes to `out`. Returns the pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        item_vectors.BLOCK = 4
        out.write_text(json.dumps({"ok": work()}))
        status = 0
    except BaseException:
        out.write_text(json.dumps({"error": traceback.format_exc()}))
    finally:
        os._exit(status)


def done(work, out: Path):
    """Run in a child to the end; its result, or its error raised here."""
    os.waitpid(child(work, out), 0)
    result = json.loads(out.read_text())
    if "error" in result:
        raise SystemExit(result["error"])
    return result["ok"]


def counted(work, announce_at: int = -1, announce=None):
    """(work()'s result, how many functions it called in this thread); at its n-th call `announce()`. A measure of progress that is
    the same on a machine of any speed."""
    calls = 0

    def profile(_frame, event, _argument):
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1
            if calls == announce_at:
                announce()

    sys.setprofile(profile)
    try:
        return work(), calls
    finally:
        sys.setprofile(None)


def killed_at(call: int, work, out: Path) -> bool:
    """SIGKILL a child from outside as it announces that `work` has reached its n-th function call; False if it ended before."""
    there, here = os.pipe()
    pid = child(lambda: counted(work, call, lambda: os.write(here, b"!"))[0], out)
    os.close(here)
    os.read(there, 1)  # nothing when the child has ended
    os.close(there)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def act(coll: Collection, op: dict, generation: int):
    """Do `op` unless a killed process did it."""
    moved = coll.layout.live()["generation"] > generation
    if op["what"] == "build":
        return coll.build(op["model"], quiet=True)
    if op["what"] == "upsert":
        return coll.upsert([row(name, colour, seed) for name, colour, seed in op["rows"]])
    if op["what"] == "delete":
        return coll.delete(op["ids"])
    if op["what"] == "promote":
        return None if moved else coll.promote(op["version"], force=True, why="a test")
    return None if moved else coll.rollback("a test")


def finish(root: Path, op: dict, before: dict):
    """After the kill: look, do it to the end, look again. Returns the new state."""
    coll = Collection(root / "coll")
    live, state = coll.layout.live(), before["ids"]
    after = dict(state)
    if op["what"] == "upsert":
        after |= {name: [colour, seed] for name, colour, seed in op["rows"]}
    if op["what"] == "delete":
        after = {k: v for k, v in after.items() if k not in op["ids"]}
    # a broken live version is never seen, and nothing is half there
    assert live["generation"] - before["generation"] in (0, 1), live
    assert live["version"] == before["live"] or live["version"] in (op.get("version"), before["previous"]), live
    found = coll.search(text="a red square", k=1000)
    assert found.version == live["version"] and len(set(found.ids)) == len(found.ids)
    assert sorted(found.ids) in (sorted(state), sorted(after)), "live has lost, doubled or halved items"
    catalog = sorted(i.id for items in coll.catalog.changed(0) for i in items)
    assert catalog in (sorted(state), sorted(after)), "the corpus is half changed"
    names = coll.layout.versions()
    assert set(before["versions"]) <= set(names) and len(names) - len(before["versions"]) in (0, 1)
    missing = None
    if op["what"] == "build":
        mark, items = op["fingerprint"], [i for chunk in coll.catalog.changed(0) for i in chunk]
        labels = np.unique([i.contents["image"][0] for i in items])
        missing = int(coll.vector_cache(mark, 64).missing("image", labels).sum())
    result = act(coll, op, before["generation"])
    if missing is not None:
        assert result["embedded"] == missing, f"embedded {result['embedded']}, {missing} were missing"
    assert not coll.updates.update_all()
    live = coll.layout.live()
    for version in coll.layout.versions():
        opened = coll.open(version)
        coll.pool.verify(opened, all_vectors=True)
        assert sorted(opened.stores["image"].ids()) == sorted(after)
    lines = [json.loads(line) for line in (coll.path / "journal.jsonl").read_text().splitlines()]
    moves = [x["generation"] for x in lines if x["what"] in ("promote", "rollback")]
    assert moves == list(range(1, live["generation"] + 1)), moves
    builds = [x["version"] for x in lines if x["what"] == "build"]
    assert len(set(builds)) == len(builds) and set(coll.layout.versions()) <= set(builds), builds
    for version in coll.layout.versions():
        if len(coll.layout.versions()) > 3 and version not in (live["version"], live["previous"]):
            coll.drop(version)
    return snapshot(coll, after)


def snapshot(coll: Collection, ids: dict) -> dict:
    live = coll.layout.live()
    return {
        "ids": ids,
        "generation": live["generation"],
        "live": live["version"],
        "previous": live["previous"],
        "versions": coll.layout.versions(),
    }


def prepare(root: Path, models: int, items: int) -> dict:
    marks = {str(root / f"m{n}"): save(load(f"tiny:clip@{n}"), root / f"m{n}") for n in range(models)}
    ids = {f"item-{i:03d}": [NAMES[i % 6], i] for i in range(items)}
    rows = [row(name, colour, seed) for name, (colour, seed) in ids.items()]
    calls = {"upsert": in_child(root, lambda: Collection(root / "coll", create=True).upsert(rows))}
    for model in list(marks)[:2]:
        calls["build"] = in_child(root, lambda model=model: Collection(root / "coll").build(model, quiet=True))
    calls["promote"] = in_child(root, lambda: Collection(root / "coll").promote("v1"))
    calls |= {"delete": calls["upsert"], "rollback": calls["promote"]}
    return {"marks": marks, "calls": calls, "state": snapshot(Collection(root / "coll"), ids)}


def in_child(root: Path, work) -> int:
    """Do `work` in a process of its own; how many functions it called."""
    return done(lambda: counted(lambda: bool(work()))[1], root / "calls.json")


def choose(rng: random.Random, state: dict, marks: dict, n: int) -> dict:
    staged = [v for v in state["versions"] if v != state["live"]]
    kinds = (
        ["build", "upsert", "upsert", "delete"] + ["promote"] * 2 * bool(staged) + ["rollback"] * 2 * bool(state["previous"])
    )
    what = rng.choice(kinds)
    if what == "build":
        model = rng.choice(list(marks))
        return {"what": what, "model": model, "fingerprint": marks[model]}
    if what == "upsert":
        known = rng.sample(sorted(state["ids"]), 2)
        names = [*known, *(f"new-{n:03d}-{i}" for i in range(rng.randint(0, 6)))]
        return {"what": what, "rows": [[name, rng.choice(NAMES), 1000 * n + i] for i, name in enumerate(names)]}
    if what == "delete":
        return {"what": what, "ids": rng.sample(sorted(state["ids"]), min(3, len(state["ids"]) - 10))}
    return {"what": what, "version": rng.choice(staged)} if what == "promote" else {"what": what}


def kills(root: Path, count: int, seed: int) -> dict:
    """SIGKILL a writer at a random point of its work, `count` times; each time look, finish, look again."""
    rng, out = random.Random(seed), root / "out.json"
    made = done(lambda: prepare(root, 4, 20), out)
    state, marks = made["state"], made["marks"]
    begin = time.perf_counter()
    calls = made["calls"]  # of a whole operation, about
    counts = {"kills": 0, "finished first": 0}
    for n in range(count):
        op = choose(rng, state, marks, n)
        before = state
        call = rng.randint(1, int(1.1 * calls[op["what"]]))
        killed = killed_at(
            call, lambda op=op, before=before: bool(act(Collection(root / "coll"), op, before["generation"])), out
        )
        counts["kills" if killed else "finished first"] += 1
        counts[op["what"]] = counts.get(op["what"], 0) + 1
        calls[op["what"]] = int(calls[op["what"]] * (1.02 if killed else 0.9))  # some kills are to come just too late
        state = done(lambda op=op, before=before: finish(root, op, before), out)
    return counts | {"seconds": round(time.perf_counter() - begin, 1)}


def client(root: Path, number: int, searches: int, cycles: int, truth: dict) -> dict:
    """Search until there were enough searches and enough switches; every answer must be wholly one version's."""
    coll, rng, by_version, count = Collection(root / "coll"), random.Random(number), {}, 0
    while count < searches or int((root / "cycles").read_text() or 0) < cycles:
        words = rng.choice(QUERIES)
        answer = coll.search(text=words, k=10)
        got = [[r["id"], r["score"]] for r in answer.results]
        assert answer.fingerprint == truth[answer.version]["fingerprint"]
        assert got == truth[answer.version][words], f"{answer.version}: {got}"
        by_version[answer.version] = by_version.get(answer.version, 0) + 1
        count += 1
    return by_version


def truths(root: Path) -> dict:
    coll = Collection(root / "coll")
    out = {}
    for version in ("v1", "v2"):
        answers = {w: coll.search(text=w, k=10, version=version) for w in QUERIES}
        out[version] = {w: [[r["id"], r["score"]] for r in a.results] for w, a in answers.items()}
        out[version]["fingerprint"] = coll.layout.record(version)["fingerprint"]
    return out


def switch(root: Path, cycles: int) -> int:
    coll = Collection(root / "coll")
    for n in range(cycles):
        begin = time.perf_counter()
        coll.promote("v2", force=True, why="a test")
        time.sleep(time.perf_counter() - begin)  # both are live for as long: a promotion checks much, a rollback is at once
        coll.rollback("a test")
        partial = root / "cycles.new"
        partial.write_text(str(n + 1))
        os.replace(partial, root / "cycles")
    return cycles


def clients(root: Path, count: int, searches: int, cycles: int) -> dict:
    """`count` processes search while one switches."""
    done(lambda: prepare(root, 2, 60), root / "out.json")
    truth = done(lambda: truths(root), root / "out.json")
    (root / "cycles").write_text("0")
    outs = [root / f"client-{n}.json" for n in range(count)]
    begin = time.perf_counter()
    share = -(-searches // count)
    pids = [child(lambda n=n: client(root, n, share, cycles, truth), out) for n, out in enumerate(outs)]
    pids.append(child(lambda: switch(root, cycles), root / "switch.json"))
    for pid in pids:
        os.waitpid(pid, 0)
    results = [json.loads(p.read_text()) for p in [*outs, root / "switch.json"]]
    errors = [r["error"] for r in results if "error" in r]
    by = {v: sum(r["ok"].get(v, 0) for r in results[:-1] if "ok" in r) for v in ("v1", "v2")}
    live = Collection(root / "coll").layout.live()
    return {
        "errors": errors,
        "searches": sum(by.values()),
        "by_version": by,
        "generation": live["generation"],
        "seconds": time.perf_counter() - begin,
    }


if __name__ == "__main__":
    where = Path(sys.argv[2])
    numbers = [int(x) for x in sys.argv[3:]]
    print(json.dumps(kills(where, *numbers) if sys.argv[1] == "kills" else clients(where, *numbers)))
