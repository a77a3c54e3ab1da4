"""Delete a version that is not live."""

import shutil

from mmtune.errors import DataError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import DropResult
from mmtune.index.maintenance.garbage import remove_stores
from mmtune.index.maintenance.pending_work import StoreRemoval, read_pending, write_pending
from mmtune.index.version_pool import VersionPool


def drop_version(layout: CollectionLayout, pool: VersionPool, version: str, why: str | None = None) -> DropResult:
    """Delete a version and its vectors permanently. Raises DataError for the live version.

    The version is gone at once. If its database is away, its tables are listed in COLL/pending.json, and `mmtune index gc`
    deletes them later. The saved model is kept until then, too.

    why: the reason to record in the audit log.
    """
    with layout.lock():
        live = layout.live()
        if live["version"] == version:
            raise DataError(f"{version} is live and cannot be dropped; promote another version first")
        record = layout.record(version)
        audit_log.append(layout, audit_log.event("drop", version, why, fingerprint=record["fingerprint"]))
        history = [v for v in live["history"] if v != version]
        if history != live["history"]:
            layout.set_live({**live, "history": history, "previous": history[-1] if history else None})
        work = read_pending(layout)
        removals: list[StoreRemoval] = [
            {"version": version, "modality": m, "store": record["store"]} for m in record["modalities"]
        ]
        write_pending(layout, {**work, "removals": [*work["removals"], *removals]})
        (layout.directory(version) / "version.json").unlink()
        pool.forget(version)
        _, left = remove_stores(layout)
        if not left:
            shutil.rmtree(layout.directory(version), ignore_errors=True)
    return DropResult(version, [f"{name}: {reason}" for name, reason in left.items()])
