"""Find near-duplicate contents: compare 64-bit hashes of the rows (`Modality.near_duplicate_key`) by Hamming distance.

A candidate is a near-duplicate of a query if its rows have nearly the same content as the query's rows, in either modality of
the direction. Examples: another scan of the query image, or a copy of the query's positive that belongs to another row.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from mmtune import modalities
from mmtune.embedding.stream_blocks import hash_arrays
from mmtune.embedding.streamed_rows import stream_of
from mmtune.errors import Rejected
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items
from mmtune.runtime.files import atomic_open
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

MAX_ROWS = 8
"""Maximum number of contents per item that are compared, spread evenly over its distinct hashes."""


@dataclass
class ContentHashes:
    """Hashes of the rows of a dataset in one modality.

    hashes: uint64 [N]
    known: bool [N], False for rows without a hash
    distance: contents are near-duplicates if their hashes differ in at most this many bits
    """

    hashes: np.ndarray
    known: np.ndarray
    distance: int


def looks_for_near_duplicates(options: MiningOptions) -> bool:
    """Whether any direction looks for near-duplicates."""
    return options.guards.near_duplicates or any(o.guards.given.get("near_duplicates") for o in options.per_direction)


def hashed_modalities(options: MiningOptions) -> list[str]:
    """Return the modalities whose contents mining with these options hashes, if the data have them."""
    if not looks_for_near_duplicates(options):
        return []
    return [m for m in modalities.names() if modalities.get(m).near_duplicate_distance >= 0]


def hash_contents(
    data: "Data | WeightedConcat", modality: str, cache: Path | None = None, quiet: bool = True
) -> ContentHashes | None:
    """Hash the content of every row, decoding each distinct content once. Returns None if the modality has no such hashes.

    Streamed rows were hashed while they were read (`hashed` of `open_to_embed`).

    cache: a directory in which to keep the hashes, e.g. for the next mining round; they do not depend on the model's weights
    """
    kind = modalities.get(modality)
    distance = kind.near_duplicate_distance
    if distance < 0:
        return None
    if (stream := stream_of(data)) is not None:
        return ContentHashes(*stream.hashes(modality, cast("Data", data).row_numbers(np.arange(len(data)))), distance)
    fingerprint = hashlib.sha256(data.fingerprint.encode()).hexdigest()[:16]
    path = cache / f"near-{modality}-{fingerprint}.npz" if cache else None
    if path and path.exists():
        with np.load(path, allow_pickle=False) as f:
            return ContentHashes(f["sig"], f["has"], distance)
    hashes, known = np.zeros(len(data), np.uint64), np.zeros(len(data), bool)
    rows = np.flatnonzero(data.present[modality])
    _, first, inverse = np.unique(data.labels[modality][rows], return_index=True, return_inverse=True)
    unique = rows[first]
    keys: list[int | None] = [None] * len(unique)
    with Progress(f"hashes of {modality}", len(unique), quiet=quiet) as progress:
        for at in np.argsort(unique).tolist():  # in the order of the shards on disk
            try:
                keys[at] = kind.near_duplicate_key(kind.decode(data.read(int(unique[at]), modality)))
            except Rejected:
                keys[at] = None
            progress.advance(1)
    hashes[rows], known[rows] = (of_unique[inverse] for of_unique in hash_arrays(keys))
    if path:
        with atomic_open(path) as f:
            np.savez(f, sig=hashes, has=known)
    return ContentHashes(hashes, known, distance)


@dataclass
class _ItemHashes:
    """Hashes of M items: hashes uint64 [M, R] and known bool [M, R], with R at most MAX_ROWS."""

    hashes: np.ndarray
    known: np.ndarray


class NearDuplicates:
    """Near-duplicates between the items of one direction, in every modality that `hashes` has.

    rows_of: maps row ids to row numbers of the data
    """

    def __init__(
        self,
        queries: Items,
        candidates: Items,
        hashes: Mapping[str, ContentHashes],
        rows_of: Callable[[list[str]], np.ndarray],
    ):
        self.sides: list[tuple[_ItemHashes, _ItemHashes, int]] = []
        for m in dict.fromkeys((queries.name, candidates.name)):
            if m in hashes:
                of_queries = _of_items(queries, hashes[m], rows_of)
                of_candidates = of_queries if candidates is queries else _of_items(candidates, hashes[m], rows_of)
                self.sides.append((of_queries, of_candidates, hashes[m].distance))

    def contains(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """bool [B, W]: whether candidate items [B, W] are near-duplicates of query items [B]."""
        out = np.zeros(candidates.shape, bool)
        for q, c, distance in self.sides:
            for i in range(q.hashes.shape[1]):
                query_hash, query_known = q.hashes[queries, i][:, None], q.known[queries, i][:, None]
                for j in range(c.hashes.shape[1]):
                    bits = np.bitwise_count(query_hash ^ c.hashes[candidates, j])
                    out |= query_known & c.known[candidates, j] & (bits <= distance)
        return out & (candidates >= 0)


def _of_items(items: Items, s: ContentHashes, rows_of: Callable[[list[str]], np.ndarray]) -> _ItemHashes:
    """Collect the distinct hashes of each item's rows; if there are more than MAX_ROWS, pick them at even distances."""
    rows = items.rows
    owner = np.repeat(np.arange(len(items)), rows.counts)
    at = rows_of(items.row_ids)[rows.values]
    keep = (at >= 0) & s.known[at]
    owner, value = owner[keep], s.hashes[at[keep]]
    order = np.lexsort((value, owner))
    owner, value = owner[order], value[order]
    new = np.append(True, (owner[1:] != owner[:-1]) | (value[1:] != value[:-1])) if len(owner) else np.zeros(0, bool)
    owner, value = owner[new], value[new]
    counts = np.bincount(owner, minlength=len(items))
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = int(min(MAX_ROWS, counts.max(initial=1)))
    column = np.where(counts[owner] > width, number * MAX_ROWS // np.maximum(counts[owner], 1), number)
    hashes, known = np.zeros((len(items), width), np.uint64), np.zeros((len(items), width), bool)
    hashes[owner, column], known[owner, column] = value, True
    return _ItemHashes(hashes, known)
