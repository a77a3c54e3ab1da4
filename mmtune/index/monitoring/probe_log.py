"""Run probes one at a time, over all processes, and keep their results and the day's query drift in COLL/history/probes.jsonl."""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.errors import MmtuneError
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.item_catalog import Catalog
from mmtune.index.monitoring.canary_probe import IndexProbe, ProbeResult, probe
from mmtune.index.monitoring.gate_queries import read_gate_queries
from mmtune.index.monitoring.query_drift import QueryDrift, gate_drift
from mmtune.index.monitoring.traffic_history import DAY, TrafficHistory
from mmtune.index.version_pool import VersionPool
from mmtune.runtime.segmented_log import SegmentedLog
from mmtune.runtime.work_lock import Timeout, file_lock

LOG_BYTES, LOG_SEGMENTS = 4 << 20, 2
"""A month of hourly probes takes about 1 MB."""
LAST_BYTES = 256 << 10
"""Bytes in which the last probe is looked for."""
REST = 20
"""A scheduled probe starts only after so many times the duration of the last one, so that it takes at most 5% of the time."""


def probe_log(collection: Path) -> SegmentedLog:
    """Return the log of probes of the collection at a path."""
    return SegmentedLog(collection / "history" / "probes.jsonl", LOG_BYTES, LOG_SEGMENTS)


def last_probe(collection: Path) -> JsonObject | None:
    """Return the last line of the log of probes, or None if there is none or the log is damaged."""
    try:
        lines = probe_log(collection).read(LAST_BYTES)
    except MmtuneError:
        return None
    return lines[-1] if lines else None


def probe_of_line(line: Mapping[str, object]) -> ProbeResult:
    """Read a probe from its line in the log."""
    indexes = line["indexes"]
    assert isinstance(indexes, dict)
    return ProbeResult(
        at=str(line["at"]),
        version=str(line["version"]),
        k=int(str(line["k"])),
        seconds=float(str(line["seconds"])),
        indexes={m: IndexProbe(**i) for m, i in indexes.items()},
        fault=None if line["fault"] is None else str(line["fault"]),
    )


def day_drift(layout: CollectionLayout, version: str, now: float) -> list[QueryDrift]:
    """Compare the queries of the last 24 hours with the gate's, for each modality that has a reference."""
    gate = read_gate_queries(layout, version)
    return gate_drift(TrafficHistory(layout.path).read(now - DAY, now + 1) if gate else [], gate, version)


def run_probe(
    layout: CollectionLayout, catalog: Catalog, pool: VersionPool, k: int = 10, wait: float = -1, every: float = 0
) -> ProbeResult | None:
    """Probe the live version and log the result, unless another process is doing so.

    wait: seconds to wait for another process's probe; -1 means without end
    every: probe only if the last one was at least so many seconds ago, and REST times its own duration, or was of another version

    Returns None if no probe was run.
    """
    directory = layout.path / "history"
    directory.mkdir(exist_ok=True)
    lock = file_lock(directory / ".probe.lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        return None
    try:
        if every and not _due(last_probe(layout.path), every, layout.live()["version"]):
            return None
        result = probe(layout, catalog, pool, k)
        line = result.to_dict()
        try:
            line["drift"] = [d.to_dict() for d in day_drift(layout, result.version, time.time())]
        except MmtuneError as e:  # a damaged file of the history must not hide the probe
            line |= {"drift": [], "drift_fault": str(e)}
        probe_log(layout.path).append(line)
        return result
    finally:
        lock.release()


def _due(last: JsonObject | None, every: float, version: str | None) -> bool:
    if last is None or last["version"] != version:
        return True
    age = time.time() - datetime.fromisoformat(last["at"]).timestamp()
    return age >= every and age >= REST * float(last["seconds"])
