"""The history of a collection's traffic: one file a day in COLL/history/, to which every server process appends its counts.

    COLL/history/2026-11-29.jsonl    counts (`TrafficCounts.to_line`) of that day in UTC
    COLL/history/probes.jsonl        results of probes (`probe_log`)

Lines are sums, so several lines about the same period are added up. Files of the last two days have periods of five minutes, older
ones of an hour. No query, id, address or token is stored.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mmtune.errors import DataError
from mmtune.index.monitoring.traffic_counts import TrafficCounts, merge
from mmtune.runtime.files import append_jsonl, read_jsonl_log, truncate_torn_line, write_jsonl
from mmtune.runtime.work_lock import file_lock

PERIOD = 300
"""Seconds of a period of the last two days."""
HOUR, DAY = 3600, 86_400
KEEP_DAYS = 35
"""Days after which a file is deleted."""
MAX_BYTES = 64 << 20
"""Most bytes of all files; the oldest days are deleted first. A month of two versions takes about 5 MB."""
MERGE_BYTES = 1 << 20
"""The lines of today's file are merged whenever it has grown by this much."""
NAME = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl")


class TrafficHistory:
    """The history of one collection. Any number of processes may append: each does under the history's lock.

    period: seconds of a period
    """

    def __init__(self, collection: Path, period: int = PERIOD, max_bytes: int = MAX_BYTES, merge_bytes: int = MERGE_BYTES):
        self.directory, self.period, self.max_bytes, self.merge_bytes = collection / "history", period, max_bytes, merge_bytes
        self._merged: dict[tuple[Path, bool], int] = {}

    def append(self, counts: Sequence[TrafficCounts], now: float) -> None:
        """Append counts. Either all are appended, or none is, and OSError is raised: a full disk, or one that is read-only.

        now: Unix time; the files of earlier days are merged and deleted by it
        """
        if not counts:
            return
        self.directory.mkdir(exist_ok=True)
        with file_lock(self.directory / ".lock"):
            before = {path: path.stat().st_size for path in self._trimmed({self._file(c.key.start) for c in counts})}
            try:
                for one in counts:
                    append_jsonl(self._file(one.key.start), one.to_line())
            except OSError:
                for path in {self._file(c.key.start) for c in counts}:
                    if path.exists():
                        os.truncate(path, before.get(path, 0))
                raise
            self._tidy(now)

    def _trimmed(self, paths: set[Path]) -> list[Path]:
        """Remove incomplete last lines, which killed processes left; return the files that exist."""
        existing = [p for p in paths if p.exists()]
        for path in existing:
            truncate_torn_line(path)
        return existing

    def _file(self, start: float) -> Path:
        return self.directory / f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}.jsonl"

    def files(self) -> list[Path]:
        """Return the files of all days, oldest first."""
        return sorted(p for p in self.directory.glob("*.jsonl") if NAME.fullmatch(p.name))

    def _tidy(self, now: float) -> None:
        """Merge lines, and delete what is too old or too much. The caller must hold the lock."""
        yesterday = self._file(now - DAY).name
        for path in self.files():
            with contextlib.suppress(OSError, DataError):  # the counts are written; a damaged file is reported when it is read
                self._merge_file(path, closed=path.name < yesterday)
        oldest, sizes = self._file(now - KEEP_DAYS * DAY).name, {p: p.stat().st_size for p in self.files()}
        for path in list(sizes)[:-1]:
            if path.name < oldest or sum(sizes.values()) > self.max_bytes:
                path.unlink()
                del sizes[path]

    def _merge_file(self, path: Path, closed: bool) -> None:
        """Merge the lines of a file that has grown. closed: nothing is appended to it any more, so its periods become hours."""
        grown = path.stat().st_size - self._merged.get((path, closed), 0)
        if not grown or not closed and grown <= self.merge_bytes:
            return
        counts = self.read_file(path)
        merged = merge(counts, HOUR if closed else self.period)
        if len(merged) < len(counts):
            write_jsonl(path, [c.to_line() for c in merged])
        self._merged[path, closed] = path.stat().st_size

    def read(self, since: float = 0, until: float = float("inf")) -> list[TrafficCounts]:
        """Return the counts of the periods that begin in [since, until), merged, in the order of their times.

        Raises DataError, which names the file, for a damaged line.
        """
        first = self._file(max(since, 0)).name
        counts = [c for p in self.files() if p.name >= first for c in self.read_file(p) if since <= c.key.start < until]
        return merge(counts)

    def read_file(self, path: Path) -> list[TrafficCounts]:
        """Return the counts of one file, not merged. Raises DataError, which names the file, for a damaged line."""
        try:
            return [TrafficCounts.from_line(line) for line in read_jsonl_log(path)]
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(f"{path}: a line is no count of traffic ({e}); delete the file, or that line") from None
