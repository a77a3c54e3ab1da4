"""Change the items of a collection, and apply the changes to all versions."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mmtune.contracts import Row
from mmtune.errors import DataError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout, VersionRecord
from mmtune.index.collection_results import DeleteResult, RejectedItem, UpsertResult
from mmtune.index.integrity import catalog_behind
from mmtune.index.item_catalog import Catalog
from mmtune.index.item_vectors import embed_missing, fill_store
from mmtune.index.version_pool import VersionPool
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


class VersionUpdates:
    """Writes changes to the catalog, then to the stores of all versions: live, staged, and earlier ones."""

    def __init__(self, layout: CollectionLayout, catalog: Catalog, pool: VersionPool):
        self.layout, self.catalog, self.pool = layout, catalog, pool

    def upsert(self, data: "Data | str | Iterable[Row]", prune: bool, quiet: bool) -> UpsertResult:
        """Insert or replace items by id. prune: delete the items that are not in the packed data."""
        from mmtune.data.shards.dataset import Data, open_data

        rejected: list[RejectedItem] = []
        rows = open_data(data) if isinstance(data, str) else data
        with self.layout.lock():
            self.require_current_catalog()
            if isinstance(rows, Data):
                counts = self.catalog.upsert_data(rows, prune)
            else:
                counts, rejected = self.catalog.upsert_rows(rows)
            audit_log.append(self.layout, audit_log.event("upsert", items=counts.new + counts.changed))
        behind = self.update_all(quiet)
        return UpsertResult(counts.new, counts.changed, counts.same, counts.kept, counts.deleted, rejected, behind)

    def delete(self, ids: Sequence[str]) -> DeleteResult:
        """Delete items by id."""
        with self.layout.lock():
            self.require_current_catalog()
            count = self.catalog.delete(list(ids))
            audit_log.append(self.layout, audit_log.event("delete", items=count))
        return DeleteResult(count, len(set(ids)) - count, self.update_all())

    def require_current_catalog(self) -> None:
        """Raises DataError when the catalog is older than a version. Call it before the catalog is changed."""
        for version in self.layout.versions():
            try:
                applied = self.layout.applied_seq(version)
            except DataError:  # a damaged version must not block the others; `update_all` reports it
                continue
            for reason in catalog_behind(version, self.catalog, applied):
                raise DataError(reason)

    def update_all(self, quiet: bool = True) -> dict[str, str]:
        """Bring all versions up to date, the live one first; returns {version: error} for those that failed.

        A damaged version does not block the others.
        """
        behind = {}
        for version in sorted(self.layout.versions(), key=lambda v: v != self.pool.live):
            try:
                since = self.layout.applied_seq(version)
                if since < self.catalog.seq:
                    record, model = self.layout.record(version), self.pool.open(version).model
                    cache = self.pool.vector_cache(record["fingerprint"], record["dim"])
                    for m in record["modalities"]:  # embedding takes long, so it is done without the lock
                        with Progress(f"embed {m} for {version}", self.catalog.changes(since, m), "items", quiet) as progress:
                            embed_missing(model, self.catalog, cache, self.catalog.changed(since), m, progress.advance)
                    with self.layout.lock():
                        self.update(record, model)
            except Exception as e:  # damaged files can make libraries raise anything
                behind[version] = str(e) or type(e).__name__
        return behind

    def update(self, record: VersionRecord, model: "Model", built_until: int | None = None) -> int:
        """Apply the catalog changes that a version has not applied yet; returns the sequence number that it is at then.

        The caller must hold the write lock.

        built_until: for a version that is being built: the sequence number up to which its stores are filled already.
        """
        version = record["version"]
        since = self.layout.applied_seq(version) if built_until is None else built_until
        until = self.catalog.seq
        if since < until:
            cache = self.pool.vector_cache(record["fingerprint"], record["dim"])
            for m in record["modalities"]:
                embed_missing(model, self.catalog, cache, self.catalog.changed(since, until), m, lambda n: None)
                with self.pool.store(record, m) as store:
                    fill_store(store, cache, self.catalog.changed(since, until), m)
        self.layout.set_applied_seq(version, until)
        if since < until:
            with contextlib.suppress(OSError):  # all is written: a full disk only puts merging off
                for m in record["modalities"]:
                    cache.merge(m)
        return until
