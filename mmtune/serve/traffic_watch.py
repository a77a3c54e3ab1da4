"""Count the searches of this process in the collection's history, and probe the live version's recall now and then."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from mmtune.index.monitoring.probe_log import run_probe
from mmtune.index.monitoring.traffic_history import TrafficHistory
from mmtune.index.monitoring.traffic_recorder import TrafficRecorder

if TYPE_CHECKING:
    import numpy as np

    from mmtune.index.query.query import Query
    from mmtune.serve.schemas import SearchDocument
    from mmtune.serve.served_collection import ServedCollection
    from mmtune.serve.settings import Settings

log = logging.getLogger("mmtune.serve")
FLUSH_SECONDS = 15.0
"""Seconds between writes of the counts. A process that is killed loses no more than the counts of this time."""
FIRST_PROBE = 60.0
"""Seconds after the start before the first probe, so that it does not slow down the start."""


class TrafficWatch:
    """Watches the searches of one server process. Several processes share the history, and take turns with the probes."""

    def __init__(self, collection: "ServedCollection", settings: "Settings"):
        self.collection, self.settings = collection, settings
        history = TrafficHistory(collection.path)
        self.recorder = TrafficRecorder(collection.layout, history) if settings.history else None
        self._reported: dict[str, str] = {}

    def searched(self, document: "SearchDocument", query: "Query", seconds: float) -> None:
        """Count an answered search. seconds: its duration, waiting for a batch included."""
        if self.recorder is None:
            return
        results = document["results"]
        vector_D: np.ndarray | None = None
        cosine = not query.hybrid and query.rerank is None
        if query.content is not None and document["version"] in self.collection.open_versions:
            vector_D = self.collection.open(document["version"]).cached_query(query.modality, query.content)
        score = results[0]["score"] if results and cosine else None
        self.recorder.searched(document["version"], query.modality or "item", seconds, len(results), score, vector_D)

    def failed(self, status: int) -> None:
        """Count a request for a search that was answered with an error."""
        if self.recorder is not None:
            self.recorder.failed(status)

    async def run(self) -> None:
        """Write the counts every FLUSH_SECONDS, and probe every `settings.probe` seconds, until it is cancelled.

        No error ends it; each is logged when it is new.
        """
        begin = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(self.flush)
            if self.settings.probe and time.monotonic() - begin >= min(FIRST_PROBE, self.settings.probe):
                await asyncio.to_thread(self.probe)

    def flush(self, last: bool = False) -> None:
        """Append the counts to the history. An error is logged; the counts are then kept for the next time."""
        if self.recorder is None:
            return
        try:
            self.recorder.flush(last)
            self._reported.pop("history", None)
        except Exception as e:  # nothing may end the counting
            self._report("history", f"searches cannot be counted in the history: {e}")

    def probe(self) -> None:
        """Probe the live version, if the last probe of any process is old enough."""
        collection = self.collection
        try:
            if collection.live not in collection.open_versions:
                return  # it is being loaded, or cannot be loaded, which is reported elsewhere
            result = run_probe(collection.layout, collection.catalog, collection.pool, wait=0, every=self.settings.probe)
        except Exception as e:  # damaged files can make libraries raise anything
            return self._report("probe", f"the index cannot be probed: {type(e).__name__}: {e}")
        if result is not None and result.ok:
            self._reported.pop("probe", None)
        elif result is not None:
            self._report("probe", f"the probe of version {result.version} failed: {result.reason}")

    def _report(self, what: str, line: str) -> None:
        """Log an error unless it is the last one that was logged about the same thing."""
        if self._reported.get(what) != line:
            log.error("%s", line)
            self._reported[what] = line

    def close(self) -> None:
        """Write the last counts."""
        self.flush(last=True)
