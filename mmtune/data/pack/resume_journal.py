"""The journal of a pack: which shards are finished, so that a killed pack resumes and a finished one has nothing to do.

OUT/.pack/journal.jsonl: the first line is the job's identity (source, columns, options); then an entry for each finished shard,
{split, shard, last, rejected, stamp}, where `last` is the last row of that split that the entry accounts for; and an entry without
a shard (`last` null) once a split is complete. The stamp covers size and modification time of the files behind those rows.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from mmtune.contracts import JsonObject
from mmtune.data.pack.shard_writer import ShardEntry
from mmtune.data.shards.locate import SPLIT_KIND
from mmtune.errors import DataError
from mmtune.runtime.files import append_jsonl, read_json, read_jsonl_log, write_jsonl
from mmtune.runtime.work_lock import Timeout, file_lock


class RejectedRow(TypedDict):
    """A line of rejected.jsonl: the source's row from 1, the file it is about (if one), and why it was rejected. item: which of the
    row's list of values, from 1, where it has a list."""

    row: int
    item: NotRequired[int]
    file: str | None
    reason: str


class JournalEntry(TypedDict):
    """A finished shard of a split, or (shard and last None) the end of a split."""

    split: str
    shard: ShardEntry | None
    last: int | None
    rejected: list[RejectedRow]
    stamp: str


class PackJournal:
    """The journal of one OUT, locked against a second writer while it is open. A context manager."""

    def __init__(self, out: Path, identity: JsonObject, overwrite: bool = False):
        """Raises DataError when OUT holds anything else than this job, finished or not."""
        self.out, self.path, self.identity = out, out / ".pack" / "journal.jsonl", identity
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: a file; --out must be a new or empty folder")
        others = sorted(p.name for p in out.iterdir() if p.name != ".pack") if out.exists() else []
        if others and not self.path.exists():
            raise DataError(f"{out}: holds something else ({', '.join(others[:3])}); --out must be a new or empty folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = file_lock(self.path.parent / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{out}: another `mmtune pack` is writing here") from None
        try:
            self.entries = self._load(overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _load(self, overwrite: bool) -> dict[str, list[JournalEntry]]:
        """The entries of each split whose shards are all there; what a killed run left beside them is removed."""
        lines = read_jsonl_log(self.path)
        if overwrite:
            self._remove_packed_files()
            lines = []
        if len(lines) > 1 and lines[0] != self.identity:
            self._refuse_other_job(lines[0])
        entries: dict[str, list[JournalEntry]] = {}
        broken = set()
        for entry in lines[1:]:
            split, shard = entry["split"], entry["shard"]
            if shard and not _has_size(self.out / split / shard["name"], shard["bytes"]):
                broken.add(split)
            if split not in broken:
                entries.setdefault(split, []).append(entry)
        for left_over in [*self.out.glob(".tmp-*"), *self.path.parent.glob(".tmp-*")]:
            left_over.unlink(missing_ok=True)
        if broken:  # index.json says that everything is there: it goes before anything else is touched
            for folder in [self.out, *(self.out / s for s in broken)]:
                (folder / "index.json").unlink(missing_ok=True)
        write_jsonl(self.path, [self.identity, *(e for of_split in entries.values() for e in of_split)])
        return entries

    def _refuse_other_job(self, identity: Mapping[str, object]) -> None:
        for key, value in self.identity.items():
            if identity.get(key) != value:
                raise DataError(
                    f"{self.out}: begun with another {key} ({_short(identity.get(key))}, now {_short(value)}); "
                    "choose another --out, or add --overwrite"
                )

    def _remove_packed_files(self) -> None:
        """Remove what a pack wrote, and nothing else."""
        index = read_json(self.out / "index.json") if (self.out / "index.json").exists() else {}
        splits = index.get("splits", {}) if index.get("kind") == SPLIT_KIND else {}
        for name in {"", *splits, *(e["split"] for e in read_jsonl_log(self.path)[1:])}:
            folder = self.out / name
            for path in [*folder.glob("shard-[0-9]*.tar"), folder / "index.json", folder / "rejected.jsonl"]:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir() if name else None
        self.path.unlink(missing_ok=True)

    def append(self, entry: JournalEntry) -> None:
        """Record an entry."""
        append_jsonl(self.path, entry)

    def rewrite_sorted(self, entries: list[JournalEntry]) -> None:
        """Rewrite it in one order, so that a pack that was killed leaves the same bytes as one that was not."""
        write_jsonl(self.path, [self.identity, *sorted(entries, key=lambda e: (e["split"], last_row(e)))])

    def __enter__(self) -> "PackJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def remove(self) -> None:
        """Remove an OUT in which nothing was packed."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.out.rmdir()


def last_row(entry: JournalEntry) -> float:
    """The last row that an entry accounts for; infinity for the end of a split."""
    return math.inf if entry["last"] is None else entry["last"]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and os.path.getsize(path) == size


def _short(value: object) -> str:
    shown = str(value)
    return shown if len(shown) < 60 else shown[:57] + "..."
