"""Items of the corpus -> vectors by content, block by block -> a store. What was embedded before is not again."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.embedding.embed_rows import embed_rows
from mmtune.errors import ModelError
from mmtune.index.catalog import HERE, Catalog, Item, labels_of
from mmtune.index.release.canaries import embed_bytes
from mmtune.index.vector_cache import VectorCache

if TYPE_CHECKING:
    from mmtune.index.protocols import Store
    from mmtune.model.dual_encoder import Model

BLOCK = 512  # contents a block: what a kill can lose
FILL = 32_768  # items that go into a store at once


def embed_missing(
    model: "Model",
    catalog: Catalog,
    vectors: VectorCache,
    chunks: Iterable[Sequence[Item]],
    modality: str,
    advance: Callable[[int], None],
    batch_size: int = 64,
) -> int:
    """Embed the contents of those items that have no vector yet; each block is on disk before the next begins. Returns how
    many. ModelError when the model is not the one whose vectors these are."""
    if model.fingerprint != vectors.fingerprint:
        raise ModelError(
            f"{vectors.directory}: vectors of {vectors.fingerprint}, and the model is {model.fingerprint} by now: it was "
            "changed in memory; open the collection again"
        )
    known, new, waiting = vectors.keys(modality), set[int](), list[Item]()
    made = 0
    for items in chunks:
        having = [i for i in items if not i.deleted and modality in i.contents]
        labels = labels_of(having, modality)
        at = np.searchsorted(known, labels)
        there = known[np.minimum(at, len(known) - 1)] == labels if len(known) else np.zeros(len(labels), bool)
        for item, mark, old in zip(having, labels.tolist(), there.tolist(), strict=True):
            if not old and mark not in new:
                new.add(mark)
                waiting.append(item)
        advance(len(having))
        while len(waiting) >= BLOCK:
            made += _embed_block(model, catalog, vectors, waiting[:BLOCK], modality, batch_size)
            waiting = waiting[BLOCK:]
    if waiting:
        made += _embed_block(model, catalog, vectors, waiting, modality, batch_size)
    return made


def _embed_block(
    model: "Model", catalog: Catalog, vectors: VectorCache, items: Sequence[Item], modality: str, batch_size: int
) -> int:
    """Embed and publish one block."""
    vectors.write(modality, labels_of(items, modality), embed_items(model, catalog, items, modality, batch_size))
    return len(items)


def embed_items(model: "Model", catalog: Catalog, items: Sequence[Item], modality: str, batch_size: int) -> np.ndarray:
    """Vectors [N, D] of items that have the modality: rows of shards as evaluation does, contents of the collection by the same
    tower."""
    found = np.empty((len(items), model.dim), np.float32)
    sources = np.array([i.contents[modality][1] for i in items])
    for source in np.unique(sources).tolist():
        at = np.flatnonzero(sources == source)
        here = [items[n] for n in at.tolist()]
        if source == HERE:
            values = [catalog.read(i, modality) for i in here]
            found[at] = embed_bytes(model, modality, values, None, batch_size)
            continue
        places = [catalog.where(i, modality) for i in here]
        rows = np.array([row for _, row in places])
        order = np.argsort(rows)
        found[at[order]] = embed_rows(model, places[0][0], modality, rows[order], batch_size=batch_size)
    return found


def fill(store: "Store", vectors: VectorCache, chunks: Iterable[Sequence[Item]], modality: str) -> int:
    """Put the vectors of items into a store; returns how many. Items without the modality, or deleted, are taken out of it."""
    have: list[Item] = []
    gone: list[str] = []
    count = 0
    for items in chunks:
        have += [i for i in items if not i.deleted and modality in i.contents]
        gone += [i.id for i in items if i.deleted or modality not in i.contents]
        if len(have) >= FILL:
            count += _upsert(store, vectors, have, modality)
            have = []
    if gone:
        store.delete(gone)
    return count + _upsert(store, vectors, have, modality)


def _upsert(store: "Store", vectors: VectorCache, items: Sequence[Item], modality: str) -> int:
    if items:
        meta: list[dict[str, Any]] = [i.columns for i in items]
        store.upsert([i.id for i in items], vectors.read(modality, labels_of(items, modality)), meta)
    return len(items)
