"""Near-duplicate content: 64-bit signatures of rows (`Modality.near_duplicate_key`), compared by Hamming distance.

A candidate is a near duplicate of the query when, in either modality of the direction, what its rows carry is nearly what the
query's rows carry: another scan of the query itself, or a copy of its positive that somebody filed under another row.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.errors import Rejected
from mmtune.relevance.items import Items
from mmtune.runtime.files import atomic_open
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

ROWS = 8  # rows of an item that are compared, spread over it


class Signatures:
    """sig uint64 [N], has bool [N] for the rows of a Data and one modality; `distance`: alike up to this many bits."""

    def __init__(self, sig: np.ndarray, has: np.ndarray, distance: int):
        self.sig, self.has, self.distance = sig, has, distance


def signatures(
    data: "Data | WeightedConcat", modality: str, cache: "Path | None" = None, quiet: bool = True
) -> "Signatures | None":
    """Signatures of every row, each content decoded once; None when the modality has no near key. They do not depend on any
    weights: `cache` (a directory) keeps them for the next round."""
    kind = modalities.get(modality)
    if kind.near_duplicate_distance < 0:
        return None
    mark = hashlib.sha256(data.fingerprint.encode()).hexdigest()[:16]
    path = cache / f"near-{modality}-{mark}.npz" if cache else None
    if path and path.exists():
        with np.load(path, allow_pickle=False) as f:
            return Signatures(f["sig"], f["has"], kind.near_duplicate_distance)
    sig, has = np.zeros(len(data), np.uint64), np.zeros(len(data), bool)
    rows = np.flatnonzero(data.present[modality])
    _, first, inverse = np.unique(data.labels[modality][rows], return_index=True, return_inverse=True)
    unique = rows[first]
    keys: list[int | None] = [None] * len(unique)
    with Progress(f"signatures {modality}", len(unique), quiet=quiet) as progress:
        for at in np.argsort(unique).tolist():  # the shards' order on disk
            try:
                keys[at] = kind.near_duplicate_key(kind.decode(data.read(int(unique[at]), modality)))
            except Rejected:
                keys[at] = None
            progress.advance(1)
    sig[rows] = np.array([k or 0 for k in keys], np.uint64)[inverse]
    has[rows] = np.array([k is not None for k in keys], bool)[inverse]
    if path:
        with atomic_open(path) as f:
            np.savez(f, sig=sig, has=has)
    return Signatures(sig, has, kind.near_duplicate_distance)


class Near:
    """Near duplicates between the items of one direction."""

    def __init__(
        self, queries: Items, candidates: Items, sources: dict[str, Signatures], row_of: Callable[[list[str]], np.ndarray]
    ):
        names = dict.fromkeys((queries.name, candidates.name))
        self.sides = []
        for m in names:
            if m in sources:
                q = _of_items(queries, sources[m], row_of)
                c = q if candidates is queries else _of_items(candidates, sources[m], row_of)
                self.sides.append((q, c, sources[m].distance))

    def pairs(self, q: np.ndarray, items: np.ndarray) -> np.ndarray:
        """bool [B, W]: candidate items [B, W] that are near duplicates of query items q [B]."""
        out = np.zeros(items.shape, bool)
        for (sig_q, has_q), (sig_c, has_c), distance in self.sides:
            for i in range(sig_q.shape[1]):
                mine, here = sig_q[q, i][:, None], has_q[q, i][:, None]
                for j in range(sig_c.shape[1]):
                    bits = np.bitwise_count(mine ^ sig_c[items, j])
                    out |= here & has_c[items, j] & (bits <= distance)
        return out & (items >= 0)


def _of_items(items: Items, s: Signatures, row_of: Callable[[list[str]], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(sig [M, R], has [M, R]), R at most ROWS; repeats of one signature in an item are kept once."""
    data_row = row_of(items.row_ids)
    rows = items.rows
    owner = np.repeat(np.arange(len(items)), rows.counts)
    at = data_row[rows.values]
    keep = (at >= 0) & s.has[at]
    owner, value = owner[keep], s.sig[at[keep]]
    order = np.lexsort((value, owner))
    owner, value = owner[order], value[order]
    new = np.append(True, (owner[1:] != owner[:-1]) | (value[1:] != value[:-1])) if len(owner) else np.zeros(0, bool)
    owner, value = owner[new], value[new]
    counts = np.bincount(owner, minlength=len(items))
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    spread = place * ROWS // np.maximum(counts[owner], 1)  # more than ROWS: every so-manieth
    width = int(min(ROWS, counts.max(initial=1)))
    column = np.where(counts[owner] > width, spread, place)
    sig, has = np.zeros((len(items), width), np.uint64), np.zeros((len(items), width), bool)
    sig[owner, column], has[owner, column] = value, True
    return sig, has
