"""Embed catalog items into the vector cache, block by block, and copy cached vectors into a store.

Content whose embedding is cached already is not embedded again.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune.embedding.embed_rows import embed_rows
from mmtune.errors import ModelError
from mmtune.index.item_catalog import STORED_HERE, Catalog, ContentReplaced, Item, labels_of
from mmtune.index.release.canaries import embed_bytes
from mmtune.index.vector_cache import VectorCache

if TYPE_CHECKING:
    from mmtune.index.stores import Store
    from mmtune.model.dual_encoder import Model

BLOCK = 512
"""Contents per block of the cache. An interruption loses at most one block of work."""
STORE_ROWS = 32_768
"""Items written to a store at once."""


def embed_missing(
    model: "Model",
    catalog: Catalog,
    cache: VectorCache,
    chunks: Iterable[Sequence[Item]],
    modality: str,
    advance: Callable[[int], None],
    batch_size: int = 64,
) -> int:
    """Embed the contents that are not in the cache yet, or whose cached vectors are damaged, and return their number.

    Each block is saved before the next one begins, so that an interrupted call can be resumed.

    chunks: the items, in chunks.
    advance: called with the number of items that have been processed since its last call.

    Raises ModelError when the cache belongs to another model.
    """
    if model.fingerprint != cache.fingerprint:
        raise ModelError(
            f"{cache.directory}: vectors of {cache.fingerprint}, but the model's fingerprint is now {model.fingerprint}: the "
            "model was changed in memory; open the collection again"
        )
    queued, waiting = set[int](), list[Item]()
    embedded, refresh = 0, True
    for items in chunks:
        having = [i for i in items if not i.deleted and modality in i.contents]
        labels = labels_of(having, modality)
        intact, refresh = cache.intact(modality, labels, refresh), False  # the blocks written below are in `queued`
        for item, label, present in zip(having, labels.tolist(), intact.tolist(), strict=True):
            if not present and label not in queued:
                queued.add(label)
                waiting.append(item)
        advance(len(having))
        while len(waiting) >= BLOCK:
            embedded += _embed_block(model, catalog, cache, waiting[:BLOCK], modality, batch_size)
            waiting = waiting[BLOCK:]
    if waiting:
        embedded += _embed_block(model, catalog, cache, waiting, modality, batch_size)
    return embedded


def _embed_block(
    model: "Model", catalog: Catalog, cache: VectorCache, items: Sequence[Item], modality: str, batch_size: int
) -> int:
    """Embed one block of items and save it in the cache. Returns the number of items.

    Items whose content another process has replaced meanwhile are left out: that process embeds the new content.
    """
    try:
        vectors_ND = embed_items(model, catalog, items, modality, batch_size)
    except ContentReplaced:
        items = [i for i in items if _readable(catalog, i, modality)]
        vectors_ND = embed_items(model, catalog, items, modality, batch_size)
    cache.write(modality, labels_of(items, modality), vectors_ND)
    return len(items)


def _readable(catalog: Catalog, item: Item, modality: str) -> bool:
    try:
        catalog.read(item, modality)
    except ContentReplaced:
        return False
    return True


def embed_items(model: "Model", catalog: Catalog, items: Sequence[Item], modality: str, batch_size: int) -> np.ndarray:
    """Return the embeddings [N, D] of items that all have the modality.

    Content in shards is embedded like packed data in an evaluation. Content in the catalog uses the same encoder.
    """
    vectors_ND = np.empty((len(items), model.dim), np.float32)
    sources = np.array([i.contents[modality][1] for i in items])
    for source in np.unique(sources).tolist():
        at = np.flatnonzero(sources == source)
        of_source = [items[n] for n in at.tolist()]
        if source == STORED_HERE:
            values = [catalog.read(i, modality) for i in of_source]
            vectors_ND[at] = embed_bytes(model, modality, values, None, batch_size)
            continue
        places = [catalog.locate(i, modality) for i in of_source]
        rows = np.array([row for _, row in places])
        order = np.argsort(rows)
        vectors_ND[at[order]] = embed_rows(model, places[0][0], modality, rows[order], batch_size=batch_size)
    return vectors_ND


def fill_store(store: "Store", cache: VectorCache, chunks: Iterable[Sequence[Item]], modality: str) -> int:
    """Write the cached vectors of items to a store, and return their number.

    Items that are deleted or do not have the modality are removed from the store.
    """
    present: list[Item] = []
    absent: list[str] = []
    count = 0
    for items in chunks:
        present += [i for i in items if not i.deleted and modality in i.contents]
        absent += [i.id for i in items if i.deleted or modality not in i.contents]
        if len(present) >= STORE_ROWS:
            count += _upsert(store, cache, present, modality)
            present = []
    if absent:
        store.delete(absent)
    return count + _upsert(store, cache, present, modality)


def _upsert(store: "Store", cache: VectorCache, items: Sequence[Item], modality: str) -> int:
    if items:
        vectors_ND = cache.read(modality, labels_of(items, modality))
        store.upsert([i.id for i in items], vectors_ND, [i.payload for i in items])
    return len(items)
