"""Check that the stores of a version hold the vectors that they should: a sample when it is opened, all before a promotion.

Each stored vector is compared with the cached embedding of the same content by the same model (`VectorCache`); a cached
embedding that was damaged is computed again. For the canaries, it is compared with a newly computed embedding. So vectors that something other than mmtune wrote into the store are
detected: they differ, or they belong to items that are not in the catalog.
"""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError, StoreUnavailable
from mmtune.index.item_catalog import Catalog, Item, labels_of
from mmtune.index.item_vectors import embed_items
from mmtune.index.release.canaries import differing_rows
from mmtune.index.vector_cache import VectorCache

if TYPE_CHECKING:
    from mmtune.index.open_version import OpenVersion

SAMPLE = 128
"""Vectors per modality that are compared when a version is opened."""
EMBED_BATCH = 64
"""Items per forward pass."""
MAX_FAULTS = 5
"""Most faults that are reported."""


def find_faults(
    version: "OpenVersion", catalog: Catalog, cache: VectorCache, applied: int, all_vectors: bool = False
) -> list[str]:
    """Return one line per fault; [] when there is none.

    applied: the catalog's sequence number that the version is at.
    all_vectors: compare all vectors and ids; otherwise compare a sample of the vectors and the counts.

    A concurrent writer can cause false faults. So hold the write lock, or repeat the check under the lock when it reports a
    fault.
    """
    faults = catalog_behind(version.version, catalog, applied)
    for name, store in version.stores.items():
        where = f"version {version.version}: {name}"
        if applied == catalog.seq:
            count = catalog.counts().get(name, 0)
            if len(store) != count:
                faults.append(f"{where}: {len(store)} vectors in the store, {count} items in the catalog")
        if not all_vectors:
            faults += _compare(version, name, catalog, cache, catalog.sample(name, SAMPLE, applied), where)
            continue
        stored, expected = set(store.ids()), 0
        for items in catalog.changed(0, applied):
            having = [i for i in items if name in i.contents]
            absent = [i.id for i in having if i.id not in stored]
            if absent:
                faults.append(f"{where}: {len(absent)} items are not in the store, e.g. {absent[0]!r}")
            expected += len(having)
            faults += _compare(version, name, catalog, cache, [i for i in having if i.id in stored], where)
        if not faults and applied == catalog.seq and len(stored) != expected:
            faults.append(f"{where}: {len(stored) - expected} vectors in the store belong to no item of the catalog")
    return faults[:MAX_FAULTS]


def catalog_behind(version: str, catalog: Catalog, applied: int) -> list[str]:
    """Return a fault if the catalog is older than the version. New changes of the catalog would not reach such a version."""
    if applied <= catalog.seq:
        return []
    return [
        f"version {version} contains {applied} changes of the items, but {catalog.path} has only {catalog.seq}: the file was "
        "replaced by an older one; bring back the newer one"
    ]


def _recompute(version: "OpenVersion", name: str, catalog: Catalog, cache: VectorCache, items: Sequence[Item]) -> np.ndarray:
    """Embed items whose cached vectors were damaged, save the vectors in the cache, and return them [N, D]."""
    vectors_ND = embed_items(version.model, catalog, items, name, EMBED_BATCH)
    with contextlib.suppress(OSError):  # a read-only disk
        cache.write(name, labels_of(items, name), vectors_ND)
    return vectors_ND


def _compare(
    version: "OpenVersion", name: str, catalog: Catalog, cache: VectorCache, items: Sequence[Item], where: str
) -> list[str]:
    """Compare stored vectors with the cached and canary embeddings of the same contents; return the faults."""
    if not items:
        return []
    labels, canaries = labels_of(items, name), version.canaries.get(name)
    had = ~cache.missing(name, labels)
    known = cache.intact(name, labels)
    expected = np.full((len(items), version.dim), np.nan, np.float32)
    expected[known] = cache.read(name, labels[known])
    if (lost := np.flatnonzero(had & ~known)).size:
        expected[lost], known[lost] = _recompute(version, name, catalog, cache, [items[n] for n in lost.tolist()]), True
    if canaries is not None:
        canary_of = {label: n for n, label in enumerate(canaries[0].tolist())}
        for row in [n for n, label in enumerate(labels.tolist()) if label in canary_of]:
            expected[row], known[row] = canaries[1][canary_of[int(labels[row])]], True
    compared = [i for i, has in zip(items, known.tolist(), strict=True) if has]
    if not compared:
        return []
    try:
        stored, expected = version.stores[name].fetch([i.id for i in compared]).astype(np.float64), expected[known]
    except StoreUnavailable:
        raise
    except DataError as e:
        return [f"{where}: items are not in the store ({e})"]
    bad = np.flatnonzero(differing_rows(stored, expected))
    if not len(bad):
        return []
    lengths = np.linalg.norm(stored[bad], axis=1)
    cosines = (stored[bad] * expected[bad]).sum(1) / np.maximum(lengths, 1e-9)
    worst = int(np.argmin(cosines))
    length = "" if abs(lengths[worst] - 1) < 0.01 else f", length {lengths[worst]:.2f}"
    return [
        f"{where}: {len(bad)} of {len(compared)} stored vectors are not what {version.fingerprint} makes of their items (the "
        f"worst: {compared[int(bad[worst])].id!r}, cosine {cosines[worst]:.4f}{length}): something else wrote into the store"
    ]
