"""What a pack has finished, so that a killed one goes on where it was and a finished one has nothing to do.

OUT/.pack/journal.jsonl: first line the identity of the job (source, columns, options), then an entry per finished
shard: {split, shard, last, rejected, stamp}, where `last` is the last row (of that split) that it accounts for, and an entry
without a shard (`last` null) once a split is through. The stamp covers size and time of the files behind those rows.
"""

import contextlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

from mmtune.data.shards.locate import SPLIT_KIND
from mmtune.errors import DataError
from mmtune.runtime.files import append_jsonl, read_json, read_jsonl_log, write_jsonl
from mmtune.runtime.work_lock import Timeout, file_lock


class Journal:
    """The journal of one OUT, locked against a second writer while open. A context manager."""

    def __init__(self, out: Path, identity: dict[str, Any], overwrite: bool = False):
        """Raises DataError when OUT holds anything else than this job, finished or not."""
        self.out, self.path = out, out / ".pack" / "journal.jsonl"
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: a file; --out must be a new or empty folder")
        strange = sorted(p.name for p in out.iterdir() if p.name != ".pack") if out.exists() else []
        if strange and not self.path.exists():
            raise DataError(f"{out}: holds something else ({', '.join(strange[:3])}); --out must be a new or empty folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = file_lock(self.path.parent / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{out}: another `mmtune pack` is writing here") from None
        try:
            self._load(identity, overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _load(self, identity: dict[str, Any], overwrite: bool) -> None:
        self.identity = identity
        lines = read_jsonl_log(self.path)
        if overwrite:
            self._clear()
            lines = []
        if len(lines) > 1 and lines[0] != identity:
            for key in identity:
                if lines[0].get(key) != identity[key]:
                    raise DataError(
                        f"{self.out}: begun with another {key} ({_short(lines[0].get(key))}, now {_short(identity[key])}); "
                        "choose another --out, or add --overwrite"
                    )
        entries: dict[str, list[dict[str, Any]]] = {}
        broken = set()
        for entry in lines[1:]:
            split, shard = entry["split"], entry["shard"]
            if shard and not _whole(self.out / split / shard["name"], shard["bytes"]):
                broken.add(split)
            if split not in broken:
                entries.setdefault(split, []).append(entry)
        self.entries = {s: e for s, e in entries.items() if e}
        for left in [*self.out.glob(".tmp-*"), *self.path.parent.glob(".tmp-*")]:
            left.unlink(missing_ok=True)
        if broken:  # what claims to be whole must go before the rest is touched
            for folder in [self.out, *(self.out / s for s in broken)]:
                (folder / "index.json").unlink(missing_ok=True)
        write_jsonl(self.path, [identity, *(e for entries in self.entries.values() for e in entries)])

    def _clear(self) -> None:
        """Remove what a pack wrote, and nothing else."""
        index = read_json(self.out / "index.json") if (self.out / "index.json").exists() else {}
        splits = index.get("splits", {}) if index.get("kind") == SPLIT_KIND else {}
        lines = read_jsonl_log(self.path)[1:] if self.path.exists() else []
        for name in {"", *splits, *(e["split"] for e in lines)}:
            folder = self.out / name
            for path in [*folder.glob("shard-[0-9]*.tar"), folder / "index.json", folder / "rejected.jsonl"]:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir() if name else None
        self.path.unlink(missing_ok=True)

    def add(self, entry: dict[str, Any]) -> None:
        """Record an entry; it is one `write`, a torn one is ignored."""
        append_jsonl(self.path, entry)

    def tidy(self, entries: list[dict[str, Any]]) -> None:
        """Rewrite it in one order, so that a pack that was killed leaves the same bytes as one that was not."""
        write_jsonl(self.path, [self.identity, *sorted(entries, key=lambda e: (e["split"], last(e)))])

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def remove(self) -> None:
        """Take back an OUT in which nothing was packed."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.out.rmdir()


def last(entry: dict[str, Any]) -> float:
    """The last row an entry accounts for."""
    return math.inf if entry["last"] is None else entry["last"]


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and os.path.getsize(path) == size


def _short(value: Any) -> str:
    shown = str(value)
    return shown if len(shown) < 60 else shown[:57] + "..."
