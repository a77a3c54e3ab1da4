"""Where one split's rows go: into shards, into the list of the rejected, and into the journal that lets a killed pack go on."""

import json
import math
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmtune.data.pack.columns import Job, stamp
from mmtune.data.pack.resume_journal import Journal, last
from mmtune.data.pack.shard_writer import ShardWriter, room
from mmtune.errors import DataError


class Sink:
    """One split. Rows come in order; those that the journal has are only compared with it."""

    def __init__(self, journal: Journal, split: str, limit: int):
        self.journal, self.split, self.limit = journal, split, limit
        self.folder: Path = journal.out / split
        self.entries = journal.entries.get(split, [])
        self.known = list(self.entries)
        self.done_rejected: dict[int, dict[str, Any]] = {r["row"]: r for e in self.known for r in e["rejected"]}
        self.settled_to = max((last(e) for e in self.known), default=0)
        self.shards: list[dict[str, Any]] = [e["shard"] for e in self.known if e["shard"]]
        self.rejected: list[dict[str, Any]] = []  # since the last entry
        self.all_rejected: list[dict[str, Any]] = []
        self.present: Counter[str] = Counter()
        self.packed = self.last = 0
        self._stamp = blake2b(digest_size=16)
        self._writer: ShardWriter | None = None
        for left in self.folder.glob(".tmp-*"):  # of a killed run
            left.unlink(missing_ok=True)

    def settled(self, row: int) -> bool:
        """True for a row that an earlier run packed or rejected."""
        return row <= self.settled_to

    def take(self, job: Job) -> None:
        """Account for one row; a packed one is written. `job.reason` decides."""
        while self.known and job.row > last(self.known[0]):
            self._match(self.known.pop(0))
        line = {"row": job.row, "file": job.file, "reason": job.reason} if job.reason else None
        if line is None and not job.settled:
            self._write(job)
        self._stamp.update(f"{job.row}:{job.stamp or stamp(job)}\n".encode())
        self.last = job.row
        if line:
            self.all_rejected.append(line)
            if not job.settled:
                self.rejected.append(line)
        else:
            self.packed += 1
            self.present.update(list(job.values))

    def recall(self, job: Job) -> None:
        """Give a settled row the verdict of the run that settled it."""
        if line := self.done_rejected.get(job.row):
            job.reason, job.file = line["reason"], line["file"]

    def _match(self, entry: dict[str, Any]) -> None:
        """Past an entry's last row: the files behind its rows must be what they were when it was written."""
        if entry["stamp"] != self._stamp.hexdigest():
            raise DataError(
                f"{self.journal.out}: files of rows up to {self.last} have changed since they were packed; "
                "choose another --out, or add --overwrite"
            )
        self._stamp = blake2b(digest_size=16)

    def _write(self, job: Job) -> None:
        document = {"id": job.id, "group": job.group, "meta": job.meta}
        line = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        members: list[tuple[str, bytes]] = [(job.extensions[n], v) for n, v in job.values.items() if isinstance(v, bytes)]
        assert len(members) == len(job.values), job
        members.append(("json", line.encode()))
        if self._writer and self._writer.bytes + room(members) > self.limit:
            self._close()
        if self._writer is None:
            self._writer = ShardWriter(self.folder / f"shard-{len(self.shards):06d}.tar")
        self._writer.add(f"{job.row:08d}", members)

    def _close(self) -> None:
        """Publish the shard; its entry accounts for every row before the one at hand."""
        assert self._writer
        self.shards.append(self._writer.close())
        self._writer = None
        self._record(self.shards[-1], self.last)

    def _record(self, shard: dict[str, Any] | None, row: int | None) -> None:
        entry = {"split": self.split, "shard": shard, "last": row, "rejected": self.rejected, "stamp": self._stamp.hexdigest()}
        self.journal.add(entry)
        self.entries.append(entry)
        self._stamp = blake2b(digest_size=16)
        self.rejected = []

    def finish(self) -> None:
        """The source is through: publish the last shard and close the split's account."""
        if self._writer:
            self._close()
        for entry in self.known:
            self._match(entry)
        self.known = []
        if self.settled_to != math.inf:
            self._record(None, None)
            self.settled_to = math.inf

    def describe(self) -> dict[str, Any]:
        """The split's part of index.json."""
        counts = {"rows": self.packed + len(self.all_rejected), "packed": self.packed, "rejected": len(self.all_rejected)}
        return {**counts, "present": {n: self.present[n] for n in sorted(self.present)}, "shards": self.shards}

    def abort(self) -> None:
        """Drop the shard being written."""
        if self._writer:
            self._writer.abort()
