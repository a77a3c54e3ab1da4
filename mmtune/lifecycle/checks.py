"""Are a version's stores what the corpus and the model say? A sample at open, everything before a promotion.

The reference is the vector that the same fingerprint gave the same content when it was embedded (`vectors`): vectors that
somebody wrote into the store by other ways differ from it, or stand for items that the corpus does not have.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune.lifecycle.corpus import Corpus, Item, labels_of
from mmtune.lifecycle.vectors import ContentVectors

if TYPE_CHECKING:
    from mmtune.lifecycle.opened import Opened

SAMPLE = 128
ALIKE = 0.999


def faults(opened: "Opened", corpus: Corpus, vectors: ContentVectors, applied: int, every: bool = False) -> list[str]:
    """Reasons, [] when all is well. every: all vectors and the sets of ids; else a sample and the counts.

    Needs a corpus that stands still: call it under the write lock, or ask again there before a reason is believed.
    """
    found = []
    for name, store in opened.stores.items():
        what = f"version {opened.version}: {name}"
        if applied == corpus.seq:
            count = corpus.counts().get(name, 0)
            if len(store) != count:
                found.append(f"{what}: {len(store)} vectors in the store, {count} items in the corpus")
        if not every:
            found += _compare(opened, name, vectors, corpus.sample(name, SAMPLE, applied), what)
            continue
        stored, seen = set(store.ids()), 0
        for items in corpus.changed(0, applied):
            having = [i for i in items if name in i.contents]
            lost = [i.id for i in having if i.id not in stored]
            if lost:
                found.append(f"{what}: {len(lost)} items are not in the store, e.g. {lost[0]!r}")
            seen += len(having)
            found += _compare(opened, name, vectors, [i for i in having if i.id in stored], what)
        if not found and applied == corpus.seq and len(stored) != seen:
            found.append(f"{what}: {len(stored) - seen} vectors in the store belong to no item of the corpus")
    return found[:5]


def _compare(opened: "Opened", name: str, vectors: ContentVectors, items: Sequence[Item], what: str) -> list[str]:
    """Stored vectors against those of the same content and fingerprint."""
    if not items:
        return []
    labels = labels_of(items, name)
    lost = vectors.missing(name, labels)
    known = [i for i, gone in zip(items, lost.tolist(), strict=True) if not gone]
    if not known:
        return []
    stored = opened.stores[name].fetch([i.id for i in known]).astype(np.float64)
    cosines = (stored * vectors.read(name, labels[~lost])).sum(1)
    bad = np.flatnonzero(~(cosines >= ALIKE))
    if not len(bad):
        return []
    at = int(bad[np.argmin(cosines[bad])])
    return [
        f"{what}: {len(bad)} of {len(known)} stored vectors are not what {opened.fingerprint} makes of their items (the worst: "
        f"{known[at].id!r}, cosine {cosines[at]:.4f}): something else wrote into the store"
    ]
