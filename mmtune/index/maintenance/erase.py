"""Erase an item: leave no byte of it in any version, cache, log or table of the collection, and prove it.

Each step can be repeated. The item is listed in COLL/pending.json until the last one is done, so that an erasure that was
killed, or that a database which was away interrupted, is finished when the collection is opened next, or by
`mmtune index gc`. Outside the collection, the item's row in packed data, backups, and what the operating system keeps of
overwritten blocks are not touched.
"""

import hashlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtune.errors import DataError, MmtuneError
from mmtune.index import audit_log
from mmtune.index.collection_layout import VersionRecord
from mmtune.index.collection_results import CollectionResult
from mmtune.index.item_catalog import COLUMNS_SCHEMA, STORED_HERE, Catalog
from mmtune.index.maintenance.erase_proof import ErasureProof, prove, vector_window, windows_of
from mmtune.index.maintenance.mask_item import id_pattern, mask_document, mask_logs
from mmtune.index.maintenance.pending_work import Erasure, read_pending, write_pending
from mmtune.index.maintenance.sweep import OLD_SECONDS, compact_store, current_labels, sweep_caches, sweep_temporary_files
from mmtune.index.release.canaries import keep_canaries, store_canaries
from mmtune.index.version_updates import VersionUpdates
from mmtune.runtime.progress import Progress

CHECKPOINT_SECONDS = 10.0
"""How long to wait for other processes' reads before the catalog's write-ahead log can be emptied."""


@dataclass(frozen=True, eq=False)
class EraseResult(CollectionResult):
    """The outcome of an erasure.

    known: whether the catalog had the item.
    erased: whether nothing of the item is left.
    behind: {version or file: why it could not be erased there}; the erasure is repeated at the next open.
    outside: packed data that still contains the item; pack it again without the item.
    proof: what was searched; None while a version or a log is behind.
    """

    known: bool
    erased: bool
    behind: Mapping[str, str]
    outside: Sequence[str]
    proof: ErasureProof | None


class Eraser:
    """Erases items of one collection. The caller must hold the lock "build", so that no build reads the item meanwhile."""

    def __init__(self, updates: VersionUpdates, quiet: bool = True):
        self.quiet = quiet
        self.layout, self.catalog, self.pool, self.updates = updates.layout, updates.catalog, updates.pool, updates

    def erase(self, item: str, why: str) -> EraseResult:
        """Erase an item by id. why: the reason, which is recorded in the audit log without the id."""
        if not why.strip():
            raise DataError("erase: needs --why REASON; the reason is recorded in the audit log")
        if not item:
            raise DataError("erase: the item's id is empty")
        if id_pattern(item).search(why.encode()):
            raise DataError("erase: --why contains the item's id, and the audit log would keep it; write the reason without it")
        with self.layout.lock():
            work = read_pending(self.layout)
            erasure = next((e for e in work["erasures"] if e["item"] == item), None)
            if erasure is None:
                erasure = self._describe(item, why)
                write_pending(self.layout, {**work, "erasures": [*work["erasures"], erasure]})
        known = bool(self.catalog.items([item]))
        outside = self._outside(item)
        return self.finish(erasure, known, outside)

    def _describe(self, item: str, why: str) -> Erasure:
        """Describe the item, so that what is left of it can be found after its row is gone."""
        needles, sha256 = list[str](), list[str]()
        found = self.catalog.items([item]).get(item)
        for m, (label, source) in found.contents.items() if found else ():
            if self._shared(m, label, item):
                continue  # another item has the same content, which therefore stays
            if source == STORED_HERE:
                data = self.catalog.read(found, m) if found else b""
                needles += windows_of(data)
                sha256.append(hashlib.sha256(data).hexdigest())
        for version in self.layout.versions() if found else ():
            try:
                record = self.layout.record(version)
                for m in record["modalities"]:
                    if found and m in found.contents and not self._shared(m, found.contents[m][0], item):
                        with self.pool.store(record, m) as store:
                            needles.append(vector_window(store.fetch([item])[0]))
            except (MmtuneError, OSError):
                continue  # a damaged version: `finish` reports it
        contents = {m: label for m, (label, _) in found.contents.items()} if found else {}
        return {"item": item, "why": why, "contents": contents, "sha256": sha256, "needles": list(dict.fromkeys(needles))}

    def _shared(self, modality: str, label: int, item: str) -> bool:
        query = "select 1 from content where modality = ? and label = ? and id != ? limit 1"
        return self.catalog.connection().execute(query, (modality, label, item)).fetchone() is not None

    def _outside(self, item: str) -> list[str]:
        query = "select distinct s.shards from content c join sources s on s.number = c.source where c.id = ?"
        return [r[0] for r in self.catalog.connection().execute(query, (item,))]

    def finish(self, erasure: Erasure, known: bool = False, outside: Sequence[str] = ()) -> EraseResult:
        """Do all steps of an erasure, also those that were done before."""
        item = erasure["item"]
        with self.layout.lock():
            if self.catalog.items([item]):
                self.catalog.delete([item])
        behind = self.updates.update_all()
        versions = self.layout.versions()
        with Progress("erase", len(versions) + 1, "steps", self.quiet) as progress:
            for version in versions:
                progress.advance(0, f"version {version}")
                try:
                    self._erase_from_version(self.layout.record(version), item)
                except Exception as e:  # damaged files can make libraries raise anything; another version is not blocked by it
                    behind[version] = str(e) or type(e).__name__
                progress.advance(1, "caches, logs, catalog")
            with self.layout.lock():
                sweep_caches(self.layout, self.catalog, erasure["contents"])
                self._erase_from_logs(erasure)
                sweep_temporary_files(self.layout.path)
                if not behind:
                    behind |= purge_catalog(self.catalog, item)
            progress.advance(1)
        if behind:
            return EraseResult(known, False, behind, outside, None)
        with self.layout.lock():
            proof = prove(self.layout, self.catalog, self.pool, erasure, self.quiet)
            if behind := _in_temporary_files(proof):
                return EraseResult(known, False, behind, outside, proof)
            audit_log.append(self.layout, audit_log.event("erase", None, erasure["why"], items=1, left=len(proof.found)))
            work = read_pending(self.layout)
            write_pending(self.layout, {**work, "erasures": [e for e in work["erasures"] if e["item"] != item]})
        return EraseResult(known, not proof.found, behind, outside, proof)

    def _erase_from_version(self, record: VersionRecord, item: str) -> None:
        """Remove the item from the stores and canaries of a version, and rewrite the files that contained it."""
        with self.layout.lock():
            for m in record["modalities"]:
                with self.pool.store(record, m) as store:
                    store.delete([item])
                    compact_store(store, record["index"].get(m, {}))
            path = self.layout.directory(record["version"]) / "canaries.safetensors"
            labels = {m: current_labels(self.catalog, m, item) for m in self.catalog.counts()}
            if not keep_canaries(path, labels):
                # the item was the only canary: others take its place, while it still proves the model
                if not any(len(other) for other in labels.values()):
                    raise DataError(f"{path}: the item is the only one; drop {record['version']}, or add other items first")
                store_canaries(self.pool.reopen(record["version"]).model, self.catalog, path)
            mask_document(path.with_name("gate.json"), item)

    def _erase_from_logs(self, erasure: Erasure) -> None:
        item, root = erasure["item"], self.layout.path
        mask_logs(root, item)
        mask_document(root / "live.json", item)
        for path in (root / "feedback").glob("*"):  # a query with the item's own content
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in erasure["sha256"]:
                path.unlink()


def _in_temporary_files(proof: ErasureProof) -> dict[str, str]:
    """Return {temporary file that contains the item: when it is removed}. A process that was killed, or one that runs, wrote it."""
    paths = [line.partition(": ")[0] for line in proof.found]
    minutes = OLD_SECONDS / 60
    reason = (
        f"a temporary file of another or a killed process; removed when it is {minutes:g} minutes old, by `mmtune index gc`"
    )
    return {p: reason for p in paths if any(part.startswith(".tmp-") for part in Path(p).parts)}


def purge_catalog(catalog: Catalog, item: str) -> dict[str, str]:
    """Remove the item's tombstone from the catalog and rewrite the database file without free pages.

    Returns {} or {file: why its write-ahead log could not be emptied}.
    """
    db = catalog.connection()
    with db:
        db.execute("begin immediate")
        db.execute("delete from items where id = ? and deleted = 1", (item,))
        unused = "not exists (select 1 from content c where c.label = blobs.label and c.modality = blobs.modality)"
        db.execute(f"delete from blobs where {unused}")
        db.execute("delete from columns")
        db.execute("delete from state where name = 'columns'")
        for statement in COLUMNS_SCHEMA.split(";"):
            if statement.strip():
                db.execute(statement)
    return rewrite_database(db, catalog.path)


def rewrite_database(db: sqlite3.Connection, path: Path) -> dict[str, str]:
    """Rewrite the database file without the bytes of deleted rows; returns {} or {file: why it was not possible}."""
    deadline = time.monotonic() + CHECKPOINT_SECONDS
    db.execute("vacuum")
    while db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]:
        if time.monotonic() > deadline:
            return {path.name: "another process reads the catalog, so its write-ahead log cannot be emptied yet"}
        time.sleep(0.05)
    return {}
