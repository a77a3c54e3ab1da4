"""Are a version's stores what the corpus and the model say? A sample at open, everything before a promotion.

The reference is the vector that the same fingerprint gave the same content when it was embedded (`vectors`), and of canaries
the one that the model gives now: vectors that somebody wrote into the store by other ways differ from it, or stand for items
that the corpus does not have.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError
from mmtune.index.catalog import Catalog, Item, labels_of
from mmtune.index.release.canaries import apart
from mmtune.index.vector_cache import VectorCache

if TYPE_CHECKING:
    from mmtune.index.open_version import OpenVersion

SAMPLE = 128


def faults(opened: "OpenVersion", catalog: Catalog, vectors: VectorCache, applied: int, every: bool = False) -> list[str]:
    """Reasons, [] when all is well. every: all vectors and the sets of ids; else a sample and the counts.

    Needs a corpus that stands still: call it under the write lock, or ask again there before a reason is believed.
    """
    found = behind(opened.version, catalog, applied)
    for name, store in opened.stores.items():
        what = f"version {opened.version}: {name}"
        if applied == catalog.seq:
            count = catalog.counts().get(name, 0)
            if len(store) != count:
                found.append(f"{what}: {len(store)} vectors in the store, {count} items in the corpus")
        if not every:
            found += _compare(opened, name, vectors, catalog.sample(name, SAMPLE, applied), what)
            continue
        stored, seen = set(store.ids()), 0
        for items in catalog.changed(0, applied):
            having = [i for i in items if name in i.contents]
            lost = [i.id for i in having if i.id not in stored]
            if lost:
                found.append(f"{what}: {len(lost)} items are not in the store, e.g. {lost[0]!r}")
            seen += len(having)
            found += _compare(opened, name, vectors, [i for i in having if i.id in stored], what)
        if not found and applied == catalog.seq and len(stored) != seen:
            found.append(f"{what}: {len(stored) - seen} vectors in the store belong to no item of the corpus")
    return found[:5]


def behind(version: str, catalog: Catalog, applied: int) -> list[str]:
    """The reason against a corpus that is older than the version: changes that it makes from now on would not reach it."""
    if applied <= catalog.seq:
        return []
    return [
        f"version {version} has the first {applied} changes of the items, and {catalog.path} knows of {catalog.seq}: an older "
        "file was put there; bring back the newer one"
    ]


def _compare(opened: "OpenVersion", name: str, vectors: VectorCache, items: Sequence[Item], what: str) -> list[str]:
    """Stored vectors against those of the same content and fingerprint."""
    if not items:
        return []
    labels, kept = labels_of(items, name), opened.canaries.get(name)
    there = ~vectors.missing(name, labels)
    right = np.full((len(items), opened.dim), np.nan, np.float32)
    right[there] = vectors.read(name, labels[there])
    if kept is not None:
        at = {mark: n for n, mark in enumerate(kept[0].tolist())}
        for row in [n for n, mark in enumerate(labels.tolist()) if mark in at]:
            right[row], there[row] = kept[1][at[int(labels[row])]], True
    known = [i for i, has in zip(items, there.tolist(), strict=True) if has]
    if not known:
        return []
    try:
        stored, right = opened.stores[name].fetch([i.id for i in known]).astype(np.float64), right[there]
    except DataError as e:
        return [f"{what}: items are not in the store ({e})"]
    bad = np.flatnonzero(apart(stored, right))
    if not len(bad):
        return []
    lengths = np.linalg.norm(stored[bad], axis=1)
    cosines = (stored[bad] * right[bad]).sum(1) / np.maximum(lengths, 1e-9)
    worst = int(np.argmin(cosines))
    length = "" if abs(lengths[worst] - 1) < 0.01 else f", length {lengths[worst]:.2f}"
    return [
        f"{what}: {len(bad)} of {len(known)} stored vectors are not what {opened.fingerprint} makes of their items (the worst: "
        f"{known[int(bad[worst])].id!r}, cosine {cosines[worst]:.4f}{length}): something else wrote into the store"
    ]
