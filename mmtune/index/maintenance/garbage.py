"""`mmtune index gc`: finish what was left to do, and remove what no item and no version needs any more."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmtune.errors import MmtuneError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import CollectionResult
from mmtune.index.item_catalog import Catalog
from mmtune.index.maintenance.erase import rewrite_database
from mmtune.index.maintenance.pending_work import StoreRemoval, read_pending, write_pending
from mmtune.index.maintenance.sweep import sweep_caches, sweep_temporary_files, used_fingerprints
from mmtune.index.stores import open_store
from mmtune.runtime.progress import Progress


@dataclass(frozen=True, eq=False)
class GarbageResult(CollectionResult):
    """What was removed.

    stores: tables and directories of dropped versions whose removal had failed before.
    models: saved models, with their cached vectors, that only dropped versions had.
    versions: directories of dropped versions.
    contents: contents stored in the catalog that no item has.
    vectors: cached vectors whose content no item has.
    tombstones: rows of deleted items that every version has applied.
    files: temporary files of killed processes.
    backups: those of them outside the collection: unfinished files of killed backups.
    bytes: by how much the collection's directory became smaller.
    left: {store or file: why it could not be removed}.
    """

    stores: Sequence[str]
    models: Sequence[str]
    versions: Sequence[str]
    contents: int
    vectors: int
    tombstones: int
    files: int
    backups: Sequence[str]
    bytes: int
    left: Mapping[str, str]


def remove_stores(layout: CollectionLayout) -> tuple[list[str], dict[str, str]]:
    """Remove the stores of dropped versions that are listed as pending; return (removed tables, {table: why not}).

    The caller must hold the write lock.
    """
    removed, left, kept = list[str](), dict[str, str](), list[StoreRemoval]()
    for removal in read_pending(layout)["removals"]:
        name = f"{removal['version']} {removal['modality']}"
        try:
            location = layout.store_location(removal["version"], removal["modality"], removal["store"])
            name = location.name
            try:
                store = open_store(location)
            except MmtuneError as e:
                if not any(words in str(e) for words in ("no such", "no faiss store")):
                    raise
            else:
                store.drop()
                store.close()
            removed.append(name)
        except Exception as e:  # a database that is away; its libraries raise errors of their own
            left[name] = str(e) or type(e).__name__
            kept.append(removal)
    write_pending(layout, {**read_pending(layout), "removals": kept})
    return removed, left


def collect_garbage(layout: CollectionLayout, catalog: Catalog, quiet: bool = True) -> GarbageResult:
    """Remove everything that is not needed. The caller must hold the locks "build" and "write".

    Cached vectors of a model that no version ever had are kept: `mmtune index embed` made them for a build to come.
    """
    with Progress("gc", 5, "steps", quiet) as progress:
        return _collect(layout, catalog, progress)


def _collect(layout: CollectionLayout, catalog: Catalog, progress: Progress) -> GarbageResult:
    before = sum(p.stat().st_size for p in layout.path.rglob("*") if p.is_file())
    progress.advance(0, "dropped versions")
    removed, left = remove_stores(layout)
    pending = {r["version"] for r in read_pending(layout)["removals"]}
    known, used = set(layout.versions()), used_fingerprints(layout)
    lines = audit_log.read(layout)
    dropped = {line["version"] for line in lines if line["what"] == "drop"} - known - pending
    directories = [v for v in sorted(dropped) if layout.directory(v).exists()]
    for version in directories:
        shutil.rmtree(layout.directory(version))
    progress.advance(1, "models")
    models = sorted({line["fingerprint"] for line in lines if line["what"] == "build"} - set(used))
    models = [f for f in models if any((layout.path / part / f).exists() for part in ("models", "vectors"))]
    for fingerprint in models:
        for part in ("vectors", "models"):
            shutil.rmtree(layout.path / part / fingerprint, ignore_errors=True)
    progress.advance(1, "cached vectors")
    vectors = sweep_caches(layout, catalog, {})
    progress.advance(1, "contents")
    contents, tombstones = _collect_rows(layout, catalog)
    left |= rewrite_database(catalog.connection(), catalog.path) if contents or tombstones else {}
    progress.advance(1, "temporary files")
    files = sweep_temporary_files(layout.path)
    progress.advance(1)
    after = sum(p.stat().st_size for p in layout.path.rglob("*") if p.is_file())
    backups = [str(p) for p in files if layout.path not in p.parents]
    return GarbageResult(removed, models, directories, contents, vectors, tombstones, len(files), backups, before - after, left)


def _collect_rows(layout: CollectionLayout, catalog: Catalog) -> tuple[int, int]:
    """Delete unused contents, and the tombstones that all versions have applied; return their numbers."""
    applied = min([catalog.seq, *(layout.applied_seq(v) for v in layout.versions())])
    db = catalog.connection()
    with db:
        db.execute("begin immediate")
        unused = "not exists (select 1 from content c where c.label = blobs.label and c.modality = blobs.modality)"
        contents = db.execute(f"delete from blobs where {unused}").rowcount
        tombstones = db.execute("delete from items where deleted = 1 and seq <= ?", (applied,)).rowcount
    return contents, tombstones
