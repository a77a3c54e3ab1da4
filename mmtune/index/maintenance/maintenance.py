"""Maintenance of a collection: erase, backup, clone, garbage collection, compaction, verification, repair."""

import warnings
from pathlib import Path

from mmtune.errors import MmtuneError
from mmtune.index import audit_log
from mmtune.index.maintenance.backup import BackupResult, CopyResult, backup, clone
from mmtune.index.maintenance.erase import Eraser, EraseResult
from mmtune.index.maintenance.fill_versions import refill_version
from mmtune.index.maintenance.garbage import GarbageResult, collect_garbage
from mmtune.index.maintenance.pending_work import FILE, read_pending, write_pending
from mmtune.index.maintenance.sweep import compact_store, reclaim_store
from mmtune.index.maintenance.verify_files import CompactResult, RepairResult, VerifyResult, verify_collection
from mmtune.index.version_updates import VersionUpdates
from mmtune.runtime.progress import Progress


class Maintenance:
    """Maintenance of one collection. Use it as `Collection.maintenance`."""

    def __init__(self, updates: VersionUpdates):
        self.layout, self.catalog, self.pool, self.updates = updates.layout, updates.catalog, updates.pool, updates

    def finish_pending(self, quiet: bool = True) -> None:
        """Finish what a killed process left to do. Failures are warnings, because the collection can be searched nevertheless.

        Tables of dropped versions are left to `gc`, which may have to wait for their database.
        """
        if not (self.layout.path / FILE).exists():
            return
        try:
            with self.layout.lock("build", wait=0):
                self._fill(quiet)
                for erasure in read_pending(self.layout)["erasures"]:
                    left = Eraser(self.updates, quiet).finish(erasure).behind
                    for where, reason in left.items():
                        warnings.warn(f"{self.layout.path}: an item is not erased yet from {where}: {reason}", stacklevel=2)
        except (MmtuneError, OSError) as e:
            warnings.warn(f"{self.layout.path}: unfinished maintenance is left to do: {e}", stacklevel=2)

    def _fill(self, quiet: bool) -> None:
        with self.layout.lock():
            work = read_pending(self.layout)
            for version in list(work["fill"]):
                if version in self.layout.versions():
                    refill_version(self.updates, version, quiet)
                work["fill"].remove(version)
                write_pending(self.layout, work)

    def erase(self, item: str, why: str, quiet: bool = True) -> EraseResult:
        """Erase an item: no byte of it is left in the collection. See `mmtune.index.maintenance.erase`.

        why: the reason, which is recorded in the audit log.
        """
        with self.layout.lock("build", wait=0.5):
            return Eraser(self.updates, quiet).erase(item, why)

    def backup(self, out: str | Path, quiet: bool = True) -> BackupResult:
        """Write a backup of the collection, as it is at one moment, to the new file `out`."""
        return backup(self.layout, Path(out), quiet)

    def clone(self, target: str | Path, quiet: bool = True) -> CopyResult:
        """Copy the collection to the new directory `target`, with an id and database tables of its own."""
        return clone(self.layout, Path(target), quiet)

    def gc(self, quiet: bool = True) -> GarbageResult:
        """Remove what no item and no version needs any more, and finish what was left to do."""
        self.finish_pending(quiet)
        with self.layout.lock("build", wait=0.5), self.layout.lock():
            return collect_garbage(self.layout, self.catalog, quiet)

    def compact(self, version: str | None = None, *, full: bool = False, quiet: bool = True) -> CompactResult:
        """Free the space of deleted and replaced rows in the stores of a version (default: all), and bring their indexes up to date.

        full: rewrite everything, so that no byte of a deleted row is left. In PostgreSQL, searches wait meanwhile; otherwise they go
            on. Without it, searches go on in every store.
        """
        before, after, notes = dict[str, int](), dict[str, int](), dict[str, str]()
        behind = self.updates.update_all()
        names = [v for v in ([version] if version else self.layout.versions()) if v not in behind]
        with Progress("compact", len(names), "versions", quiet) as progress:
            for name in names:
                with self.layout.lock():
                    record = self.layout.record(name)
                    for m in record["modalities"]:
                        with self.pool.store(record, m) as store:
                            label, settings = f"{name} {m}", record["index"].get(m, {})
                            progress.advance(0, label)
                            before[label] = store.size()
                            if full:
                                compact_store(store, settings)
                            notes[label] = "written again" if full else reclaim_store(store, settings)
                            after[label] = store.size()
                progress.advance(1)
        return CompactResult(before, after, behind, notes)

    def verify(self, quiet: bool = True) -> VerifyResult:
        """Read every byte of the collection and compare it with its checksums."""
        return verify_collection(self.layout, self.catalog, self.pool, quiet)

    def repair(self, quiet: bool = True) -> RepairResult:
        """Repair what can be computed again: cached vectors, stores, and torn log lines."""
        self.finish_pending(quiet)
        before = self.verify(quiet)
        repaired = list[str]()
        with self.layout.lock("build", wait=0.5), self.layout.lock():
            audit_log.append(self.layout)  # removes a torn line, and adds lines that a killed writer left out
            for block in before.removable:
                (self.layout.path / block).unlink(missing_ok=True)
                repaired.append(f"{block}: removed; its vectors are computed again")
            for version in before.damaged_stores:
                try:
                    refill_version(self.updates, version, quiet)
                    repaired.append(f"version {version}: its stores were written again")
                except Exception as e:  # a damaged model or database must not keep the others from being repaired
                    repaired.append(f"version {version}: not repaired: {e}")
        return RepairResult(before.faults, repaired, self.verify(quiet).faults)
