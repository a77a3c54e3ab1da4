"""Live searches repeated on a staged version, off the hot path: what would change for those who search?

COLL/shadow.json says which version and what fraction, for every process; COLL/shadow.jsonl has a line a repeated search, and
COLL/shadow.old.jsonl those before: full, the one becomes the other.
"""

import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.errors import DataError, MmtuneError
from mmtune.index import audit_log
from mmtune.index.layout import now
from mmtune.index.open_version import decode_query
from mmtune.index.query.query import Query
from mmtune.runtime.files import append_jsonl, read_json, read_jsonl_log, write_json
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.collection import Collection
    from mmtune.index.protocols import SearchResponse

WAITING = 64  # searches that may wait to be repeated; more are counted as dropped
WORST = 5
FULL = 64 << 20  # bytes of a log, about 250,000 searches


def agreement(live: Sequence[str], staged: Sequence[str], k: int) -> tuple[float, float | None]:
    """(overlap@k: shared items / the longer list, 1 for two empty ones; mean |rank change| of shared items, None without
    any)."""
    live, staged = live[:k], staged[:k]
    place = {name: i for i, name in enumerate(staged)}
    both = [abs(i - place[name]) for i, name in enumerate(live) if name in place]
    longest = max(len(live), len(staged))
    return (len(both) / longest if longest else 1.0), (float(np.mean(both)) if both else None)


class ShadowSearches:
    """One a Collection. `offer` costs a draw; a thread of its own does the rest."""

    def __init__(self, coll: "Collection"):
        self.coll, self.state_path = coll, coll.path / "shadow.json"
        self.log, self.old = coll.path / "shadow.jsonl", coll.path / "shadow.old.jsonl"
        self._known: tuple[int, dict[str, Any]] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: set[Future[None]] = set()
        self._guard, self._random, self.dropped = threading.Lock(), random.Random(), 0

    def state(self) -> dict[str, Any] | None:
        """{"version", "fraction", "since"} or None."""
        try:
            stamp = os.stat(self.state_path).st_mtime_ns
        except FileNotFoundError:
            return None
        if self._known is None or self._known[0] != stamp:
            self._known = (stamp, read_json(self.state_path))
        return self._known[1] if self._known[1]["version"] else None

    def active(self) -> dict[str, Any] | None:
        """`state`, but None while that version is the live one: nothing is repeated then."""
        state = self.state()
        return state if state and state["version"] != self.coll.live else None

    def start(self, version: str | None, fraction: float) -> dict[str, Any]:
        """ShadowSearches `version` from now on; None stops."""
        if not 0 < fraction <= 1:
            raise DataError(f"fraction {fraction}: between 0 and 1")
        if version is not None and version == self.coll.live:
            raise DataError(f"{version} is live; shadow a staged version")
        document = {"version": version, "fraction": fraction, "since": now()}
        with self.coll.layout.lock():
            write_json(self.state_path, document)
            audit_log.append(
                self.coll.layout, audit_log.event("shadow" if version else "shadow off", version, fraction=fraction)
            )
        return document

    def offer(self, answer: "SearchResponse", ask: "Query") -> None:
        """Maybe repeat this search."""
        state = self.state()
        if state is None or state["version"] == answer.version or self._random.random() >= state["fraction"]:
            return
        with self._guard:
            if len(self._pending) >= WAITING:
                self.dropped += 1
                return
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="shadow")
            future = self._pool.submit(self.repeat, state["version"], answer, ask)
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)

    def repeat(self, version: str, answer: "SearchResponse", ask: "Query") -> None:
        """Search again on the staged version and write a line; an error is a line, too."""
        line: dict[str, Any] = {"at": now(), "live": answer.version, "staged": version, "k": ask.k, "query": answer.query}
        begin = time.perf_counter()
        try:
            self.coll.open(version)
            begin = time.perf_counter()  # opening is no part of a search
            (found,) = self.coll.search_many([ask], version)
            if isinstance(found, MmtuneError):
                raise found
            overlap, moved = agreement(answer.ids, found.ids, ask.k)
            line |= {"overlap": overlap, "moved": moved, "top": answer.ids[:1] == found.ids[:1]}
            line |= {"empty_live": not answer.results, "empty_staged": not found.results, "seconds_live": answer.seconds}
        except (MmtuneError, OSError) as e:
            line["error"] = str(e)
        append_jsonl(self.log, {**line, "seconds_staged": time.perf_counter() - begin})
        if self._full():
            with self.coll.layout.lock("shadow"):
                if self._full():  # no other process was sooner
                    os.replace(self.log, self.old)

    def _full(self) -> bool:
        return self.log.exists() and self.log.stat().st_size > FULL

    def replay(self, version: str, data: "Data", k: int = 10, quiet: bool = True) -> int:
        """Search with every row of `data` on both now (no server, no traffic); returns how many searches that were."""
        self.coll.layout.record(version)
        live, staged = self.coll.open(), self.coll.open(version)
        count = 0
        for m in [m for m in data.modalities if m in live.model.towers and m in staged.model.towers]:
            rows = np.flatnonzero(data.present[m]).tolist()
            with Progress(f"shadow {m}", len(rows), "searches", quiet) as progress:
                for i in rows:
                    ask = Query(m, decode_query(m, data.read(i, m)), k=k)
                    (answer,) = self.coll.search_many([ask], live.version)  # names a version: not offered again
                    if isinstance(answer, MmtuneError):
                        raise answer
                    self.repeat(version, answer, ask)
                    progress.advance(1)
                    count += 1
        return count

    def wait(self) -> None:
        """Until every search that waits is repeated."""
        for future in list(self._pending):
            future.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        with self._guard:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def report(self, version: str | None = None) -> dict[str, Any]:
        """Over all lines of the version (default: the one shadowed now, else the last) against the version that is live now."""
        self.wait()
        lines = [line for log in (self.old, self.log) for line in read_jsonl_log(log)]
        state = self.active()
        staged = version or (state["version"] if state else lines[-1]["staged"] if lines else None)
        live = self.coll.live
        chosen = [x for x in lines if x["staged"] == staged and x["live"] == live]
        good = [x for x in chosen if "error" not in x]
        out: dict[str, Any] = {"live": live, "staged": staged, "searches": len(good), "errors": len(chosen) - len(good)}
        out |= {"dropped": self.dropped, "shadowing": state}
        if not good:
            return out
        moved = [x["moved"] for x in good if x["moved"] is not None]
        out |= {"overlap": float(np.mean([x["overlap"] for x in good])), "same_first": float(np.mean([x["top"] for x in good]))}
        out |= {"rank_change": float(np.mean(moved)) if moved else None}
        for side in ("live", "staged"):
            seconds = [x[f"seconds_{side}"] for x in good]
            out[side + "_ms"] = {"p50": 1000 * float(np.median(seconds)), "p95": 1000 * float(np.quantile(seconds, 0.95))}
            out["empty_" + side] = sum(x["empty_" + side] for x in good)
        worst = sorted(good, key=lambda x: x["overlap"])[:WORST]
        return out | {"least_alike": [{"query": x["query"], "overlap": x["overlap"]} for x in worst]}
