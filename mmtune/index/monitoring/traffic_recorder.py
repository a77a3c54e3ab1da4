"""Count the searches of one server process, and append the counts to the history every few seconds."""

import os
import threading
import time
from collections.abc import Callable, Iterable

import numpy as np

from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.monitoring.gate_queries import GateQueries, GateSample, path_of, read_gate_queries
from mmtune.index.monitoring.traffic_counts import TrafficCounts, TrafficKey, latency_bin, score_bin
from mmtune.index.monitoring.traffic_history import TrafficHistory

MIN_SUMMED = 5
"""A sum of features is written only for at least this many queries, so that no line describes a single query."""
MAX_WAITING = 2000
"""Most counts that wait while the disk is full; the oldest ones are then lost."""


class TrafficRecorder:
    """Counts of one process that are not in the history yet. Thread-safe.

    clock: returns the Unix time
    lost: number of counts that were lost because the disk was full for long
    """

    def __init__(self, layout: CollectionLayout, history: TrafficHistory, clock: Callable[[], float] = time.time):
        self.layout, self.history, self.clock, self.lost = layout, history, clock, 0
        self._counts: dict[TrafficKey, TrafficCounts] = {}
        self._gates: dict[str, tuple[float, GateQueries | None]] = {}
        self._guard, self._flushing = threading.Lock(), threading.Lock()
        self._version = ""

    def searched(
        self, version: str, by: str, seconds: float, count: int, score: float | None, vector_D: np.ndarray | None = None
    ) -> None:
        """Count one answered search.

        by: modality of the query, or "item"
        seconds: duration
        count: number of results
        score: score of the first result, if it is a cosine similarity
        vector_D: embedding of the query, if it is known; only the sum of its features is kept
        """
        gate = None if vector_D is None else self._gate(version, by)
        features = None if gate is None or vector_D is None else gate.features_of(vector_D[None])[0].astype(np.float64)
        with self._guard:
            self._version = version
            counts = self._current(version, by)
            counts.searches += 1
            counts.empty += not count
            counts.latency[latency_bin(seconds)] += 1
            if score is not None:
                counts.scores[score_bin(score)] += 1
            if gate is not None and features is not None:
                summed = self._current(version, by, gate.id)
                summed.embedded += 1
                summed.features = features if summed.features is None else summed.features + features

    def failed(self, status: int) -> None:
        """Count one request for a search that was answered with an error. status: HTTP status, 400 or more."""
        with self._guard:
            counts = self._current(self._version, "")
            if status >= 500:
                counts.errors += 1
            else:
                counts.refused += 1

    def _current(self, version: str, by: str, reference: str = "") -> TrafficCounts:
        now = int(self.clock())
        key = TrafficKey(now - now % self.history.period, version, by, reference)
        return self._counts.setdefault(key, TrafficCounts(key))

    def _gate(self, version: str, by: str) -> GateSample | None:
        """Return the gate's queries of a version and modality. They are read from the disk once, and again after `flush`."""
        if version not in self._gates:
            path = path_of(self.layout, version)
            try:
                self._gates[version] = (_modified(path), read_gate_queries(self.layout, version))
            except DataError:
                self._gates[version] = (_modified(path), None)
        gate = self._gates[version][1]
        return None if gate is None else gate.samples.get(by)

    def flush(self, last: bool = False) -> None:
        """Append the counts to the history. If that is not possible, they are kept for the next time, and OSError is raised.

        last: nothing follows; sums of too few queries are then lost
        """
        with self._flushing:
            with self._guard:
                counts, self._counts = self._counts, {}
            write, keep = _with_enough_queries(counts.values())
            try:
                self.history.append(write, self.clock())
            except OSError:
                keep += write
                raise
            finally:
                if not last:
                    self._restore(keep)
                changed = [v for v, (modified, _) in self._gates.items() if _modified(path_of(self.layout, v)) != modified]
                for version in changed:
                    self._gates.pop(version, None)

    def _restore(self, counts: list[TrafficCounts]) -> None:
        """Add counts that were not written to the current ones. Sums of features move to the current period."""
        with self._guard:
            for one in counts:
                if one.features is None:
                    self._counts.setdefault(one.key, TrafficCounts(one.key)).add(one)
                else:
                    self._current(one.key.version, one.key.by, one.key.reference).add(one)
            while len(self._counts) > MAX_WAITING:
                self._counts.pop(next(iter(self._counts)))
                self.lost += 1


def _with_enough_queries(counts: Iterable[TrafficCounts]) -> tuple[list[TrafficCounts], list[TrafficCounts]]:
    """Return (counts to write, sums of fewer than MIN_SUMMED queries). A sum of too few is added to the next one of its kind."""
    write, few = list[TrafficCounts](), dict[tuple[str, str, str], TrafficCounts]()
    for one in sorted(counts, key=lambda c: c.key.start):
        kind = (one.key.version, one.key.by, one.key.reference)
        if one.features is not None and (earlier := few.pop(kind, None)) is not None:
            one.add(earlier)
        if one.features is None or one.embedded >= MIN_SUMMED:
            write.append(one)
        else:
            few[kind] = one
    return write, list(few.values())


def _modified(path: os.PathLike[str]) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
