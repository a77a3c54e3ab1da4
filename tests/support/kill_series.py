"""SIGKILLs at exact points of every verb that changes a collection: python -m tests.support.kill_series DIR STORE KILLS SEED.

Started with `kill_at_call.c` in LD_PRELOAD. The parent imports everything and computes nothing, so that a child starts in
milliseconds. A child does one verb and is killed at its n-th call of write, rename, fsync, unlink, ...; n is drawn from all calls
of the verb. A second child looks at what is there, repeats the verb, and compares the collection with what it must be.
Prints one JSON document: {verb: kills}.
"""

import contextlib
import ctypes
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mmtune.index import audit_log, item_vectors, open_version, version_updates  # noqa: F401  (what a child needs is imported here)
from mmtune.index.adopt.adopt import adopt
from mmtune.index.adopt.vector_sources import VectorRows
from mmtune.index.collection import Collection
from mmtune.index.maintenance import backup, sweep
from mmtune.index.release.build import IndexOptions
from mmtune.model.artifact import load, save
from tests.support.corpora import COLOURS
from tests.support.index_helpers import row

VERBS = ("upsert", "delete", "promote", "rollback", "compact", "gc", "erase", "repair", "backup", "restore", "clone", "adopt")
FILES = ("compact", "erase", "repair")
"""Verbs after which every byte of the collection is read."""
NAMES = list(COLOURS)
libc = ctypes.CDLL(None)
"""With `kill_arm` and `kill_count` where the library is preloaded."""


def child(work: Callable[[], object], out: Path, kill_at: int | None = None) -> int:
    """Fork; `work()`'s JSON goes to `out`, with the number of counted calls. Returns the wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        torch.set_num_threads(1)
        if kill_at is not None:
            libc.kill_arm(ctypes.c_long(kill_at))
        result = work()
        calls = libc.kill_count()
        libc.kill_arm(ctypes.c_long(-1))
        out.write_text(json.dumps({"ok": result, "calls": calls}))
        status = 0
    except BaseException:
        libc.kill_arm(ctypes.c_long(-1))
        out.write_text(json.dumps({"error": traceback.format_exc()}))
    finally:
        os._exit(status)


def done(work: Callable[[], object], out: Path, kill_at: int | None = None) -> dict:
    """Run in a child to the end: {"ok": result, "calls": n}."""
    out.unlink(missing_ok=True)
    status = child(work, out, kill_at)
    result = json.loads(out.read_text()) if out.exists() else {"error": f"the child ended with status {status}"}
    if "error" in result:
        raise SystemExit(result["error"])
    return result


class ArraySource:
    """A database of captions and their vectors: the .npz file `url`."""

    def __init__(self, url: str, table: str, vector: str | None, id: str | None):
        self.kind, self.label, self.skipped, self.path = "faiss", f"arrays {table}", dict[str, int](), url

    def rows(self):
        with np.load(self.path) as f:
            yield VectorRows(
                f["ids"].tolist(), f["vectors"], [{"caption": c, "n": n} for n, c in enumerate(f["captions"].tolist())]
            )


class Series:
    """One collection in one kind of store, and what is done to it."""

    def __init__(self, root: Path, kind: str, seed: int):
        self.root, self.kind, self.rng = root, kind, random.Random(seed)
        self.out, self.path = root / "out.json", root / "coll"
        self.url = "env:KILLS_DB" if kind == "pgvector" else None

    def open(self, path: Path | None = None) -> contextlib.closing[Collection]:
        return contextlib.closing(Collection(path or self.path))

    def prepare(self) -> dict:
        """Two versions, 16 items; a backup; vectors to adopt. Returns the state."""
        model = str(self.root / "m0")
        save(load("tiny:clip"), model)
        ids = {f"item-{i:03d}": [NAMES[i % 6], i] for i in range(16)}
        captions = [f"a {name} square {n}" for n, name in enumerate(NAMES * 2)]
        vectors = load(model).encode(text=captions)
        np.savez(
            self.root / "base.npz", ids=np.array([f"c{n}" for n in range(12)]), vectors=vectors, captions=np.array(captions)
        )
        with contextlib.closing(Collection(self.path, create=True)) as coll:
            coll.upsert([row(name, colour, seed) for name, (colour, seed) in ids.items()])
            for version in ("v1", "v2"):
                coll.build(model, store=self.kind, url=self.url, index="flat", modalities=["image"], quiet=True)
                coll.promote(version, force=True, why="a test")
            coll.maintenance.backup(self.root / "base.tar")
            pointer = coll.layout.live()
        return {"ids": ids, "generation": pointer["generation"], "live": pointer["version"], "previous": pointer["previous"]}

    # --- one verb ------------------------------------------------------------------------------------------------

    def choose(self, verb: str, state: dict, n: int) -> dict:
        known = sorted(state["ids"])
        if verb == "upsert":
            names = [*self.rng.sample(known, 2), *(f"new-{n:03d}-{i}" for i in range(self.rng.randint(0, 3)))]
            return {"rows": [[name, self.rng.choice(NAMES), 1000 * n + i] for i, name in enumerate(names)]}
        if verb == "delete":
            return {"ids": self.rng.sample(known, max(0, min(2, len(known) - 10)))}
        if verb == "erase":
            return {"item": self.rng.choice(known)}
        if verb == "promote":
            return {"version": "v1" if state["live"] == "v2" else "v2"}
        return {"damaged": self.rng.sample(known, 2)} if verb == "repair" else {}

    def before(self, verb: str, op: dict) -> None:
        """What is there before the verb: damage to repair; no target of an earlier turn."""
        shutil.rmtree(self.root / "made", ignore_errors=True)
        (self.root / "made.tar").unlink(missing_ok=True)
        if verb == "repair":
            done(lambda: self.damage(op["damaged"]), self.out)

    def damage(self, ids: list[str]) -> None:
        with self.open() as coll, coll.pool.store(coll.layout.record("v1"), "image") as store:
            store.delete(ids)

    def act(self, verb: str, op: dict, state: dict) -> object:
        """Do the verb, unless a killed process did it already."""
        if verb in ("restore", "adopt"):
            return self.make(verb)
        with self.open() as coll:
            moved, target = coll.layout.live()["generation"] > state["generation"], self.root / "made"
            if verb == "upsert":
                return bool(coll.upsert([row(name, colour, seed) for name, colour, seed in op["rows"]]))
            if verb == "delete":
                return bool(coll.delete(op["ids"]))
            if verb == "promote":
                return moved or coll.promote(op["version"], force=True, why="a test").promoted
            if verb == "rollback":
                return moved or bool(coll.rollback("a test"))
            if verb == "erase":
                sweep.OLD_SECONDS = -1.0  # as if the temporary files of killed processes were old
                result = coll.maintenance.erase(op["item"], "a test")
                assert result.erased and not result.behind, result
                return True
            if verb == "backup":
                return (self.root / "made.tar").exists() or bool(coll.maintenance.backup(self.root / "made.tar"))
            if verb == "clone":
                return target.exists() or bool(coll.maintenance.clone(target))
            result = getattr(coll.maintenance, verb)()
            assert verb != "repair" or not result.left, result.left
            return True

    def make(self, verb: str) -> bool:
        target = self.root / "made"
        if verb == "restore":
            return target.exists() or bool(backup.restore(self.root / "base.tar", target))
        with contextlib.closing(Collection(target, create=True)) as coll:
            if not coll.layout.versions():
                options = IndexOptions(self.kind, self.url, "flat", None, None)
                source = {"source": f"{__name__}:ArraySource", "url": str(self.root / "base.npz"), "table": "captions"}
                adopt(coll, str(self.root / "m0"), modality="text", content="caption", options=options, **source)
        return True

    # --- after the kill ------------------------------------------------------------------------------------------

    def finish(self, verb: str, op: dict, state: dict) -> dict:
        """Look; repeat the verb; look again. Returns the new state."""
        old = set(state["ids"])
        after = dict(state["ids"])
        if verb == "upsert":
            after |= {name: [colour, seed] for name, colour, seed in op["rows"]}
        for id in op.get("ids", []) + ([op["item"]] if verb == "erase" else []):
            del after[id]
        with self.open() as coll:
            pointer = coll.layout.live()
            assert pointer["generation"] - state["generation"] in (0, int(verb in ("promote", "rollback"))), pointer
            assert {i.id for items in coll.catalog.changed(0) for i in items if not i.deleted} in (old, set(after))
            if verb != "repair":
                found = coll.search(text="a red square", k=1000).ids
                assert len(set(found)) == len(found) and set(found) in (old, set(after)), "live is half changed"
        self.act(verb, op, state)
        with self.open() as coll:
            self.whole(coll, after, files=verb in FILES)
            pointer = coll.layout.live()
            moved = pointer["generation"] - state["generation"]
            assert moved == int(verb in ("promote", "rollback")), pointer
            assert verb != "promote" or pointer["version"] == op["version"]
            assert verb != "rollback" or pointer["version"] == state["previous"]
            events = audit_log.read(coll.layout)  # with the event of a move whose writer was killed before it was logged
            moves = [x["generation"] for x in events if x["what"] in ("promote", "rollback")]
            assert moves == list(range(1, pointer["generation"] + 1)), moves
        self.made(verb, after)
        return {"ids": after, "generation": pointer["generation"], "live": pointer["version"], "previous": pointer["previous"]}

    def whole(self, coll: Collection, ids: dict, files: bool = True) -> None:
        """Nothing is lost, doubled, half there, or another item's vector. files: also every byte against its checksum."""
        assert not coll.updates.update_all()
        assert sorted(i.id for items in coll.catalog.changed(0) for i in items if not i.deleted) == sorted(ids)
        for version in coll.layout.versions():
            opened = coll.open(version)
            coll.pool.verify(opened, all_vectors=True)
            for store in opened.stores.values():
                assert sorted(store.ids()) == sorted(ids) and len(store) == len(ids), (version, sorted(store.ids()))
        faults = coll.maintenance.verify().faults if files else []
        assert not faults, faults

    def made(self, verb: str, ids: dict) -> None:
        """The collection that the verb made."""
        target = self.root / "made"
        if verb == "backup":
            backup.restore(self.root / "made.tar", target)
        if not target.exists():
            return
        with self.open(target) as coll:
            if verb == "adopt":
                ids = {f"c{n}": [] for n in range(12)}
            if verb == "restore":
                ids = json.loads((self.root / "base.json").read_text())["ids"]
            self.whole(coll, ids)
            versions = coll.layout.versions()
            for name in versions:  # their tables are not left in the database
                for m, store in coll.open(name).stores.items():
                    assert m and len(store) == len(ids)
                    store.drop()

    def tidy(self) -> int:
        """In the end: gc leaves no file of a killed process. Returns the bytes of the collection."""
        sweep.OLD_SECONDS = -1.0
        with self.open() as coll:
            coll.maintenance.gc()
            left = [str(p) for p in self.path.rglob("*") if p.name.startswith(".tmp-")]
            assert not left, left
        return sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())


def run(root: Path, kind: str, kills: int, seed: int) -> dict:
    """Kill `kills` times, the verbs in turn."""
    series, counts, begin = Series(root, kind, seed), dict.fromkeys(VERBS, 0), time.perf_counter()
    if kind not in ("lancedb",):  # its threads would not live in a forked process; children import it
        importlib.import_module({"faiss": "faiss", "pgvector": "psycopg", "qdrant-edge": "qdrant_edge"}[kind])
    pa.array(["pyarrow imports pandas at its first array of strings"])
    state = done(series.prepare, series.out)["ok"]
    (root / "base.json").write_text(json.dumps(state))
    calls: dict[str, int] = {}
    late = 0
    for n in range(10 * kills):
        if sum(counts.values()) == kills:
            break
        verb = VERBS[n % len(VERBS)]
        op = series.choose(verb, state, n)
        series.before(verb, op)
        before = state
        point = series.rng.randint(1, calls[verb]) if verb in calls else 0  # 0: once through, to count the calls
        status = child(lambda verb=verb, op=op, before=before: series.act(verb, op, before), series.out, point)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed:
            result = json.loads(series.out.read_text())
            if "error" in result:
                raise SystemExit(f"{verb}, not killed: {result['error']}")
            calls[verb] = result["calls"]
            late += point > 0
        counts[verb] += killed
        print(f"turn {n}: {verb}, call {point} of {calls.get(verb)}, killed: {killed}", file=sys.stderr, flush=True)
        try:
            state = done(lambda verb=verb, op=op, before=before: series.finish(verb, op, before), series.out)["ok"]
        except SystemExit as e:
            raise SystemExit(f"{verb} killed at call {point} of {calls.get(verb)} (turn {n}): {e}") from None
    size = done(series.tidy, series.out)["ok"]
    seconds = round(time.perf_counter() - begin, 1)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} s of processor time", file=sys.stderr)
    return {
        "store": kind,
        "kills": sum(counts.values()),
        "late": late,
        "verbs": counts,
        "calls": calls,
        "bytes": size,
        "seconds": seconds,
    }


if __name__ == "__main__":
    item_vectors.BLOCK = 4
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
