"""Write the rows of one split: its shards, its rejected rows, and its entries in the journal."""

import json
import math
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import TypedDict

from mmtune.data.pack.columns import PackRow, file_stamp
from mmtune.data.pack.resume_journal import JournalEntry, PackJournal, RejectedRow, last_row
from mmtune.data.pack.shard_writer import ShardEntry, ShardWriter, sample_size
from mmtune.errors import DataError


class SplitIndex(TypedDict):
    """The part of index.json that is specific to a split."""

    rows: int
    packed: int
    rejected: int
    present: dict[str, int]
    shards: list[ShardEntry]


def rejected_row(row: PackRow) -> RejectedRow:
    """Make the line of rejected.jsonl for a rejected row."""
    item: RejectedRow = {"row": row.source_row, "file": row.file, "reason": row.reason or ""}
    return {**item, "item": row.item} if row.item else item


class SplitWriter:
    """Writes one split. Rows must be added in order. Rows that the journal covers are not written again, only verified."""

    def __init__(self, journal: PackJournal, split: str, shard_size: int):
        self.journal, self.split, self.shard_size = journal, split, shard_size
        self.folder: Path = journal.out / split
        self.entries = journal.entries.get(split, [])
        self.shards: list[ShardEntry] = [e["shard"] for e in self.entries if e["shard"]]
        self.rejected: list[RejectedRow] = []
        self.modality_counts: Counter[str] = Counter()
        self.packed = 0
        self._unverified = list(self.entries)  # entries of an earlier run whose last row has not been added yet
        self._rejected_before = {(r["row"], r.get("item", 0)): r for e in self.entries for r in e["rejected"]}
        self._settled_to = max((last_row(e) for e in self.entries), default=0)
        self._unrecorded: list[RejectedRow] = []  # rows that were rejected since the last journal entry
        self._last_row = 0
        self._stamp = blake2b(digest_size=16)
        self._writer: ShardWriter | None = None
        for left_over in self.folder.glob(".tmp-*"):  # temporary files of a run that was killed
            left_over.unlink(missing_ok=True)

    def is_settled(self, row: int) -> bool:
        """Whether an earlier run has packed or rejected this row."""
        return row <= self._settled_to

    def restore_verdict(self, row: PackRow) -> None:
        """Set the reason of a settled row that the earlier run has rejected."""
        if before := self._rejected_before.get((row.source_row, row.item)):
            row.reason, row.file = before["reason"], before["file"]

    def add(self, row: PackRow) -> None:
        """Add one row: count it as rejected if it has a reason, else pack it. A settled row is not written again."""
        while self._unverified and row.number > last_row(self._unverified[0]):
            self._verify(self._unverified.pop(0))
        if row.reason is None and not row.settled:
            self._write(row)
        self._stamp.update(f"{row.number}:{row.stamp or file_stamp(row)}\n".encode())
        self._last_row = row.number
        if row.reason is not None:
            line = rejected_row(row)
            self.rejected.append(line)
            if not row.settled:
                self._unrecorded.append(line)
        else:
            self.packed += 1
            self.modality_counts.update(list(row.values))

    def _verify(self, entry: JournalEntry) -> None:
        """Check that the source files of the rows that a journal entry covers have not changed. Raises DataError if they have."""
        if entry["stamp"] != self._stamp.hexdigest():
            raise DataError(
                f"{self.journal.out}: files of rows up to {self._last_row} have changed since they were packed; "
                "choose another --out, or add --overwrite"
            )
        self._stamp = blake2b(digest_size=16)

    def _write(self, row: PackRow) -> None:
        document = {"id": row.id, "group": row.group, "meta": row.meta}
        line = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        members = {row.extensions[n]: v for n, v in row.values.items() if isinstance(v, bytes)}
        assert len(members) == len(row.values), row
        members["json"] = line.encode()
        if self._writer and self._writer.size + sample_size(members) > self.shard_size:
            self._close_shard()
        if self._writer is None:
            # stored in self before `open` creates a file, so that `abort` can remove the file after Ctrl-C
            self._writer = ShardWriter(self.folder / f"shard-{len(self.shards):06d}.tar")
            self._writer.open()
        self._writer.add(f"{row.number:08d}", members)

    def _close_shard(self) -> None:
        """Publish the current shard. Its journal entry covers all rows up to the last one that was added."""
        assert self._writer
        self.shards.append(self._writer.close())
        self._writer = None
        self._record(self.shards[-1], self._last_row)

    def _record(self, shard: ShardEntry | None, last: int | None) -> None:
        entry: JournalEntry = {
            "split": self.split,
            "shard": shard,
            "last": last,
            "rejected": self._unrecorded,
            "stamp": self._stamp.hexdigest(),
        }
        self.journal.append(entry)
        self.entries.append(entry)
        self._stamp = blake2b(digest_size=16)
        self._unrecorded = []

    def finish(self) -> None:
        """Publish the last shard and record in the journal that the split is complete. Call it after the last row."""
        if self._writer:
            self._close_shard()
        for entry in self._unverified:
            self._verify(entry)
        self._unverified = []
        if self._settled_to != math.inf:
            self._record(None, None)
            self._settled_to = math.inf

    def index(self) -> SplitIndex:
        """The part of index.json that is specific to this split."""
        return {
            "rows": self.packed + len(self.rejected),
            "packed": self.packed,
            "rejected": len(self.rejected),
            "present": {n: self.modality_counts[n] for n in sorted(self.modality_counts)},
            "shards": self.shards,
        }

    def abort(self) -> None:
        """Discard the shard that is being written."""
        if self._writer:
            self._writer.abort()
