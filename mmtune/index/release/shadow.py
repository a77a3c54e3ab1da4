"""Shadow searches: repeat live searches on a staged version in the background, to measure what would change for users.

COLL/shadow.json tells all processes the staged version and the fraction of searches to repeat. COLL/shadow.jsonl has one line
per repeated search. When that log is full, it is renamed to COLL/shadow.old.jsonl and replaces the previous file of that name.
"""

import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, MmtuneError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout, now
from mmtune.index.collection_results import QueryOverlap, SearchResponse, ShadowReport, ShadowState
from mmtune.index.query.query import Query
from mmtune.index.query.searcher import Searcher
from mmtune.index.query_content import decode_query
from mmtune.index.version_pool import VersionPool
from mmtune.runtime.files import append_jsonl, read_json, read_jsonl_log, write_json
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

DEFAULT_FRACTION = 0.1
"""Share of the live searches that are repeated by default."""
MAX_PENDING = 64
"""Most searches that may wait to be repeated; further ones are dropped and counted."""
WORST = 5
"""Number of queries with the smallest overlap that a report lists."""
MAX_LOG_BYTES = 64 << 20
"""Size at which the log is full: 64 MB, about 250,000 searches."""


def agreement(live: Sequence[str], staged: Sequence[str], k: int) -> tuple[float, float | None]:
    """Compare two rankings: return (overlap@k, mean change of rank).

    overlap@k: number of common ids, divided by the length of the longer list; 1 for two empty lists.
    mean change of rank: mean absolute difference of the ranks of the common ids; None when there are no common ids.
    """
    live, staged = live[:k], staged[:k]
    rank = {id: i for i, id in enumerate(staged)}
    moves = [abs(i - rank[id]) for i, id in enumerate(live) if id in rank]
    longest = max(len(live), len(staged))
    return (len(moves) / longest if longest else 1.0), (float(np.mean(moves)) if moves else None)


class ShadowSearches:
    """Repeats live searches of one collection on a staged version, in a background thread, and reports the differences."""

    def __init__(self, layout: CollectionLayout, pool: VersionPool, searcher: Searcher):
        self.layout, self.pool, self.searcher = layout, pool, searcher
        self.state_path = layout.path / "shadow.json"
        self.log, self.old_log = layout.path / "shadow.jsonl", layout.path / "shadow.old.jsonl"
        self.dropped = 0
        self._cached_state: tuple[int, ShadowState] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._pending: set[Future[None]] = set()
        self._guard, self._random = threading.Lock(), random.Random()

    def state(self) -> ShadowState | None:
        """Return the configured shadow traffic, or None when there is none."""
        try:
            modified = os.stat(self.state_path).st_mtime_ns
        except FileNotFoundError:
            return None
        if self._cached_state is None or self._cached_state[0] != modified:
            document = read_json(self.state_path)
            self._cached_state = (modified, ShadowState(document["version"], document["fraction"], document["since"]))
        state = self._cached_state[1]
        return state if state.version else None

    def active(self) -> ShadowState | None:
        """Return `state()`, or None while the shadow version is the live one, because then no search is repeated."""
        state = self.state()
        return state if state and state.version != self.pool.live else None

    def start(self, version: str | None, fraction: float | None = None) -> ShadowState:
        """Start shadow traffic in all processes.

        version: the staged version; None stops the shadow traffic.
        fraction: share of the live searches; default: the share that was set for this version before, else DEFAULT_FRACTION.

        Raises DataError for the live version, and for a fraction that is not in (0, 1].
        """
        if fraction is None:
            state = self.state()
            fraction = state.fraction if state and state.version == version else DEFAULT_FRACTION
        if not 0 < fraction <= 1:
            raise DataError(f"fraction {fraction}: must be greater than 0 and at most 1")
        if version is not None:
            self.layout.record(version)
            if version == self.pool.live:
                raise DataError(f"{version} is live; shadow a staged version")
        state = ShadowState(version, fraction, now())
        with self.layout.lock():
            write_json(self.state_path, state.to_dict())
            event = audit_log.event("shadow" if version else "shadow off", version, fraction=fraction)
            audit_log.append(self.layout, event)
        return state

    def offer(self, response: SearchResponse, query: Query) -> None:
        """Repeat a live search on the shadow version in the background, with probability `fraction`.

        The caller is hardly delayed: it only draws a random number and queues the search.
        """
        state = self.state()
        if state is None or state.version is None or state.version == response.version:
            return
        if self._random.random() >= state.fraction:
            return
        with self._guard:
            if len(self._pending) >= MAX_PENDING:
                self.dropped += 1
                return
            self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="shadow")
            future = self._executor.submit(self.repeat, state.version, response, query)
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)

    def repeat(self, version: str, response: SearchResponse, query: Query) -> None:
        """Run a search on the staged version and log the comparison with the live response. Errors are logged, not raised."""
        line: JsonObject = {"at": now(), "live": response.version, "staged": version, "k": query.k, "query": response.query}
        begin = time.perf_counter()
        try:
            self.pool.open(version)
            begin = time.perf_counter()  # the time to open a version is not counted as search time
            (staged,) = self.searcher.search([query], version)
            if isinstance(staged, MmtuneError):
                raise staged
            overlap, moved = agreement(response.ids, staged.ids, query.k)
            line |= {"overlap": overlap, "moved": moved, "top": response.ids[:1] == staged.ids[:1]}
            line |= {"empty_live": not response.results, "empty_staged": not staged.results, "seconds_live": response.seconds}
        except (MmtuneError, OSError) as e:
            line["error"] = str(e)
        append_jsonl(self.log, {**line, "seconds_staged": time.perf_counter() - begin})
        if self._full():
            with self.layout.lock("shadow"):
                if self._full():  # check again under the lock: another process may have renamed the log
                    os.replace(self.log, self.old_log)

    def _full(self) -> bool:
        return self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES

    def replay(self, version: str, data: "Data", k: int = 10, quiet: bool = True) -> int:
        """Search the live and the staged version with all rows of `data` now, instead of waiting for traffic.

        Returns the number of searches.
        """
        self.layout.record(version)
        live, staged = self.pool.open(), self.pool.open(version)
        count = 0
        for m in [m for m in data.modalities if m in live.model.towers and m in staged.model.towers]:
            rows = np.flatnonzero(data.present[m]).tolist()
            with Progress(f"shadow {m}", len(rows), "searches", quiet) as progress:
                for i in rows:
                    query = Query(m, decode_query(m, data.read(i, m)), k=k)
                    (response,) = self.searcher.search([query], live.version)
                    if isinstance(response, MmtuneError):
                        raise response
                    self.repeat(version, response, query)
                    progress.advance(1)
                    count += 1
        return count

    def wait(self) -> None:
        """Wait until all queued searches have been repeated."""
        for future in list(self._pending):
            future.result()

    def close(self) -> None:
        """Wait until all queued searches have been repeated, then end the background thread."""
        with self._guard:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)

    def report(self, version: str | None = None, last_bytes: int | None = None) -> ShadowReport:
        """Summarise all logged shadow searches of a staged version against the version that is live now.

        version: the staged version; default: the current shadow version, else the one that was logged last.
        last_bytes: read only the last bytes of the log; default: all of it.
        """
        self.wait()
        logs = (self.old_log, self.log) if last_bytes is None else (self.log,)
        lines = [line for log in logs for line in read_jsonl_log(log, last_bytes)]
        state = self.active()
        staged = version or (state.version if state else lines[-1]["staged"] if lines else None)
        live = self.pool.live
        chosen = [x for x in lines if x["staged"] == staged and x["live"] == live]
        good = [x for x in chosen if "error" not in x]
        if not good:
            return ShadowReport(live, staged, 0, len(chosen), self.dropped, state)
        moves = [x["moved"] for x in good if x["moved"] is not None]
        worst = sorted(good, key=lambda x: x["overlap"])[:WORST]
        return ShadowReport(
            live=live,
            staged=staged,
            searches=len(good),
            errors=len(chosen) - len(good),
            dropped=self.dropped,
            shadowing=state,
            overlap=float(np.mean([x["overlap"] for x in good])),
            same_first=float(np.mean([x["top"] for x in good])),
            rank_change=float(np.mean(moves)) if moves else None,
            live_ms=_quantiles(good, "live"),
            empty_live=sum(x["empty_live"] for x in good),
            staged_ms=_quantiles(good, "staged"),
            empty_staged=sum(x["empty_staged"] for x in good),
            least_alike=[QueryOverlap(x["query"], x["overlap"]) for x in worst],
        )


def _quantiles(lines: Sequence[JsonObject], side: str) -> dict[str, float]:
    """Return the search latency of one side ("live" or "staged") as {"p50", "p95"}, in milliseconds."""
    seconds = [x[f"seconds_{side}"] for x in lines]
    return {"p50": 1000 * float(np.median(seconds)), "p95": 1000 * float(np.quantile(seconds, 0.95))}
