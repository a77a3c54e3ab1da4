"""Fill the stores of a version again from the cached vectors: for a restored collection, and to repair a damaged store."""

from collections.abc import Iterator

from mmtune.index.item_catalog import Item
from mmtune.index.item_vectors import embed_missing, fill_store
from mmtune.index.maintenance.sweep import current_labels
from mmtune.index.stores import create_store
from mmtune.index.version_updates import VersionUpdates
from mmtune.runtime.progress import Progress


def refill_version(updates: VersionUpdates, version: str, quiet: bool = True) -> None:
    """Replace the stores of a version by new ones with all items of the catalog, and build their indexes again.

    Vectors that are not cached are embedded with the version's saved model. The caller must hold the write lock.
    """
    layout, catalog, pool = updates.layout, updates.catalog, updates.pool
    record = layout.record(version)
    cache, until = pool.vector_cache(record["fingerprint"], record["dim"]), catalog.seq
    pool.forget(version)
    for m in record["modalities"]:
        if not cache.intact(m, current_labels(catalog, m)).all():
            with Progress(f"embed {m} for {version}", catalog.counts().get(m, 0), "items", quiet) as progress:
                embed_missing(pool.saved_model(record), catalog, cache, catalog.changed(0, until), m, progress.advance)
        store = create_store(layout.store_location(version, m, record["store"]), record["dim"], record["fingerprint"])
        try:
            with Progress(f"fill {version} {m}", catalog.counts().get(m, 0), "items", quiet) as progress:
                fill_store(store, cache, _counted(catalog.changed(0, until), m, progress), m)
            settings = record["index"].get(m, {})
            search_dim = settings.get("search_dim")
            store.build(str(settings.get("index", "auto")), search_dim=search_dim if isinstance(search_dim, int) else None)
        finally:
            store.close()
    layout.set_applied_seq(version, until)


def _counted(chunks: Iterator[list[Item]], modality: str, progress: Progress) -> Iterator[list[Item]]:
    """Yield the chunks, and count the items that have the modality when the next chunk is asked for."""
    for items in chunks:
        yield items
        progress.advance(sum(not i.deleted and modality in i.contents for i in items))
