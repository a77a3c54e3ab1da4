"""Remove what no item and no version needs: cached vectors, temporary files, and the bytes of deleted rows in stores."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.item_catalog import Catalog
from mmtune.index.maintenance.backup import BACKUP_LOCK, STAGING, remove_killed_backup
from mmtune.index.stores import Store
from mmtune.index.vector_cache import VectorCache
from mmtune.runtime.work_lock import Timeout, file_lock

OLD_SECONDS = 600.0
"""A temporary file that nobody has written for this long was left by a process that was killed."""


def current_labels(catalog: Catalog, modality: str, without: str | None = None) -> np.ndarray:
    """Return the content hashes, int64, that the items have in a modality. without: id of an item to leave out."""
    query = "select distinct label from content where modality = ? and id is not ?"
    return np.array([r[0] for r in catalog.connection().execute(query, (modality, without))], np.int64)


def compact_store(store: Store, settings: Mapping[str, object]) -> None:
    """Rewrite a store without the bytes of deleted rows; a store without `compact` builds its index again.

    settings: the index settings of the version's record.
    """
    compact = getattr(store, "compact", None)
    if compact is not None:
        compact()
    else:
        store.build(str(settings.get("index", "auto")))


def reclaim_store(store: Store, settings: Mapping[str, object]) -> str:
    """Free the space of deleted and replaced rows, if the store can while searches go on; returns what was done, in one line.

    settings: the index settings of the version's record.
    """
    reclaim = getattr(store, "reclaim", None)
    if reclaim is not None:
        return str(reclaim())
    compact_store(store, settings)
    return "written again without deleted and replaced rows"


def used_fingerprints(layout: CollectionLayout) -> dict[str, int]:
    """Return {fingerprint of a version's model: dimension of its vectors}."""
    records = [layout.record(v) for v in layout.versions()]
    return {r["fingerprint"]: r["dim"] for r in records}


def sweep_caches(layout: CollectionLayout, catalog: Catalog, contents: Mapping[str, int]) -> int:
    """Remove cached vectors, and return their number: all whose content no item has, of the models of versions.

    Vectors of other models were made by `mmtune index embed` for a build that is still to come. Of those, only the vectors of
    `contents` ({modality: content hash}) are removed, if no item has that content.
    """
    used, removed = used_fingerprints(layout), 0
    for directory in (layout.path / "vectors").glob("*/*"):
        fingerprint, modality = directory.parent.name, directory.name
        if not directory.is_dir() or not any(directory.glob("[!.]*.safetensors")):
            continue
        dim = used.get(fingerprint) or _dim(directory)
        cache, labels = VectorCache(directory.parent, fingerprint, dim), current_labels(catalog, modality)
        if fingerprint not in used:
            gone = np.setdiff1d(np.array([contents[modality]] if modality in contents else [], np.int64), labels)
            labels = np.setdiff1d(cache.keys(modality), gone)
        removed += cache.keep_only(modality, labels)
    return removed


def _dim(directory: Path) -> int:
    from mmtune.index.tensor_files import map_tensors

    path = next(iter(directory.glob("[!.]*.safetensors")))
    return int(map_tensors(path, "damaged ({error}); remove it").arrays["vectors"].shape[1])


def sweep_temporary_files(root: Path) -> list[Path]:
    """Remove the temporary files and directories of killed processes, and return their paths. Those of a killed backup include the
    unfinished file outside the collection."""
    removed = list[Path]()
    for path in root.rglob(".tmp-*"):
        try:
            if path.name.startswith(STAGING) and path.is_dir():
                removed += _remove_staging(root, path)
            elif path.exists() and time.time() - _last_write(path) > OLD_SECONDS:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed.append(path)
        except FileNotFoundError:
            continue
    return removed


def _last_write(path: Path) -> float:
    """Return the time of the last write to a file, or to anything in a directory."""
    return max(p.stat().st_mtime for p in (path, *path.rglob("*")))


def _remove_staging(root: Path, path: Path) -> list[Path]:
    """Remove what a killed backup left, unless a backup is running, which may take longer than OLD_SECONDS."""
    lock = file_lock(root / BACKUP_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return []
    try:
        return remove_killed_backup(path)
    finally:
        lock.release()
