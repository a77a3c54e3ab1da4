"""Delete a version that is not live."""

from mmtune.errors import DataError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import DropResult
from mmtune.index.version_pool import VersionPool


def drop_version(layout: CollectionLayout, pool: VersionPool, version: str, why: str | None = None) -> DropResult:
    """Delete a version and its vectors permanently; its saved model is kept. Raises DataError for the live version.

    why: the reason to record in the audit log.
    """
    with layout.lock():
        live = layout.live()
        if live["version"] == version:
            raise DataError(f"{version} is live and cannot be dropped; promote another version first")
        record = layout.record(version)
        audit_log.append(layout, audit_log.event("drop", version, why))
        history = [v for v in live["history"] if v != version]
        if history != live["history"]:
            layout.set_live({**live, "history": history, "previous": history[-1] if history else None})
        (layout.directory(version) / "version.json").unlink()
        for m in record["modalities"]:
            with pool.store(record, m) as store:
                store.drop()
        pool.forget(version)
    return DropResult(version)
