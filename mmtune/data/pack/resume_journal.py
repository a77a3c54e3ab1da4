"""The journal of a pack, which records finished shards so that an interrupted pack can resume.

The file is OUT/.pack/journal.jsonl. Its first line is the identity of the pack: source, columns and options. Then follows one entry
for each finished shard, and one entry without a shard for each complete split.

Keys of an entry:
    split: name of the split
    shard: the shard as listed in index.json; null in the entry of a complete split
    last: number of the last row of the split that the entry covers; null in the entry of a complete split
    rejected: the rejected rows among the covered rows
    stamp: hash of the size and modification time of the source files of the covered rows
"""

import contextlib
import math
import os
import shutil
from pathlib import Path
from typing import NotRequired, TypedDict

from mmtune.contracts import JsonObject
from mmtune.data.pack.shard_writer import ShardEntry
from mmtune.data.shards.locate import JUDGMENTS, NEGATIVES
from mmtune.data.shards.shard_index import SPLIT_KIND, is_shard_entry
from mmtune.data.shards.shard_table import SUFFIX, table_name
from mmtune.errors import DataError
from mmtune.runtime.files import append_jsonl, read_json, read_jsonl_log, write_jsonl
from mmtune.runtime.work_lock import Timeout, file_lock

OTHER_FILES = ("index.json", "rejected.jsonl", NEGATIVES, JUDGMENTS)
"""Names of the files that a pack writes beside its shards."""


class RejectedRow(TypedDict):
    """A line of rejected.jsonl.

    row: number of the source row, from 1
    item: position of the row among those that its source row gives (list values, negatives), from 1; missing if it is the only one
    file: the file that the reason is about, or null
    reason: why the row was rejected
    """

    row: int
    item: NotRequired[int]
    file: str | None
    reason: str


class JournalEntry(TypedDict):
    """An entry of the journal: a finished shard, or the end of a split if `shard` and `last` are None. See the module docs."""

    split: str
    shard: ShardEntry | None
    last: int | None
    rejected: list[RejectedRow]
    stamp: str


class PackJournal:
    """The journal of one output directory. Holds a lock against other writers from its creation to the end of its `with` block."""

    def __init__(self, out: Path, identity: JsonObject, overwrite: bool = False):
        """Open or create the journal in the directory `out`.

        identity: source, columns and options of the pack
        overwrite: remove an existing pack that has another identity

        Raises DataError if `out` contains another pack (without `overwrite`) or other files, or if another process is packing into
        it.
        """
        self.out, self.path, self.identity = out, out / ".pack" / "journal.jsonl", identity
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is a file; --out must be a new or empty folder")
        others = sorted(p.name for p in out.iterdir() if p.name != ".pack") if out.exists() else []
        if others and not self.path.exists():
            raise DataError(f"{out}: contains other files ({', '.join(others[:3])}); --out must be a new or empty folder")
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
        """Read the entries of each split, up to the first whose shard is missing or incomplete. Removes leftover temporary files."""
        if overwrite:
            self._remove_packed_files()
        lines = [] if overwrite else read_jsonl_log(self.path)
        if len(lines) > 1 and lines[0] != self.identity:
            self._refuse_other_job(lines[0])
            raise DataError(f"{self.path} line 1: damaged; choose another --out, or add --overwrite")
        entries: dict[str, list[JournalEntry]] = {}
        broken = set()
        for number, entry in enumerate(lines[1:], 2):
            if not _is_entry(entry):
                raise DataError(f"{self.path} line {number}: damaged; choose another --out, or add --overwrite")
            split, shard = entry["split"], entry["shard"]
            if shard and not _is_whole(self.out / split, shard):
                broken.add(split)
            if split not in broken:
                entries.setdefault(split, []).append(entry)
        for left_over in [*self.out.glob(".tmp-*"), *self.path.parent.glob(".tmp-*")]:
            left_over.unlink(missing_ok=True)
        if broken:  # index.json marks a complete pack, so it must be removed before anything else changes
            for folder in [self.out, *(self.out / s for s in broken)]:
                (folder / "index.json").unlink(missing_ok=True)
        write_jsonl(self.path, [self.identity, *(e for of_split in entries.values() for e in of_split)])
        return entries

    def _lines(self) -> list[JsonObject]:
        """The lines of the journal; none if it is damaged."""
        try:
            return read_jsonl_log(self.path)
        except DataError:
            return []

    def _refuse_other_job(self, identity: object) -> None:
        if not isinstance(identity, dict):
            raise DataError(f"{self.path} line 1: damaged; choose another --out, or add --overwrite")
        for key, value in self.identity.items():
            if identity.get(key) != value:
                raise DataError(
                    f"{self.out}: begun with another {key} ({_short(identity.get(key))}, now {_short(value)}); "
                    "choose another --out, or add --overwrite"
                )

    def _remove_packed_files(self) -> None:
        """Remove the files that an earlier pack has written to the output directory, and no others."""
        index: object = {}
        with contextlib.suppress(DataError):  # a damaged index.json names no splits
            index = read_json(self.out / "index.json")
        splits = index.get("splits") if isinstance(index, dict) and index.get("kind") == SPLIT_KIND else {}
        written = [e["split"] for e in self._lines() if _is_entry(e)]
        for name in {"", *written, *(s for s in (splits if isinstance(splits, dict) else ()) if Path(s).name == s)}:
            folder = self.out / name
            for path in [
                *folder.glob("shard-[0-9]*.tar"),
                *folder.glob(f"shard-[0-9]*{SUFFIX}"),
                *(folder / name for name in OTHER_FILES),
            ]:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir() if name else None
        self.path.unlink(missing_ok=True)

    def append(self, entry: JournalEntry) -> None:
        """Append an entry to the journal."""
        append_jsonl(self.path, entry)

    def rewrite_sorted(self, entries: list[JournalEntry]) -> None:
        """Rewrite the journal in sorted order, so that it has the same bytes whether or not the pack was interrupted."""
        write_jsonl(self.path, [self.identity, *sorted(entries, key=lambda e: (e["split"], last_row(e)))])

    def __enter__(self) -> "PackJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def remove(self) -> None:
        """Remove the journal, and the output directory if it is empty. Used when the source has no rows."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.out.rmdir()


def last_row(entry: JournalEntry) -> float:
    """The number of the last row that an entry covers; infinity for the entry of a complete split."""
    return math.inf if entry["last"] is None else entry["last"]


def _is_entry(entry: object) -> bool:
    """Whether a line of the journal has all keys of a `JournalEntry`."""
    if not isinstance(entry, dict) or not isinstance(entry.get("split"), str) or not isinstance(entry.get("stamp"), str):
        return False
    if entry["split"] and Path(entry["split"]).name != entry["split"]:
        return False
    rejected = entry.get("rejected")
    if not isinstance(rejected, list) or not all(_is_rejected_row(r) for r in rejected):
        return False
    if "shard" not in entry or "last" not in entry:
        return False
    is_end = entry["shard"] is None and entry["last"] is None
    return is_end or (is_shard_entry(entry["shard"]) and type(entry["last"]) is int)


def _is_rejected_row(row: object) -> bool:
    return (
        isinstance(row, dict)
        and type(row.get("row")) is int
        and type(row.get("item", 0)) is int
        and isinstance(row.get("file", ""), str | None)
        and isinstance(row.get("reason"), str)
    )


def _is_whole(folder: Path, shard: ShardEntry) -> bool:
    """Whether a shard and its table have the sizes that the journal says."""
    sizes = {shard["name"]: shard["bytes"]}
    if "table_bytes" in shard:
        sizes[table_name(shard["name"])] = shard["table_bytes"]
    return all((folder / n).is_file() and os.path.getsize(folder / n) == size for n, size in sizes.items())


def _short(value: object) -> str:
    shown = str(value)
    return shown if len(shown) < 60 else shown[:57] + "..."
