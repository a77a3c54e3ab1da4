"""Training sets that are streamed: their shards are read from start to end in each epoch, without random access to rows."""

import hashlib
import itertools
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mmtune import modalities
from mmtune.data.remote.remote_stream import decompressed
from mmtune.data.remote.request_failures import public_url
from mmtune.data.shards.locate import list_shards
from mmtune.data.shards.remote_listing import SUFFIXES
from mmtune.data.shards.shard_listing import ShardFile, ShardListing
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.tar_index import TableBuilder
from mmtune.data.shards.tar_stream import StreamedRow, stream_rows
from mmtune.errors import DataError, DataWarning, ServerUnreachable

FIRST_ROWS, FIRST_SHARDS = 64, 4
"""Rows of a shard, and shards of a set, that are read before training, to find out which modalities there are."""


Read: TypeAlias = Literal["index", "stream"]
"""How DATA is read: any row at any time, or shards from start to end."""


def is_streamed(data: object, read: Read | None) -> bool:
    """Whether DATA is read from start to end. None means so for `pipe:COMMAND` only, which allows nothing else.

    Raises DataError if data that are not given by name are to be streamed.
    """
    if read is None:
        return isinstance(data, str) and data.startswith("pipe:")
    if read == "stream" and not isinstance(data, str | os.PathLike):
        raise DataError("--read stream: give the packed data by name (directory, brace pattern, URL or pipe:COMMAND)")
    return read == "stream"


@dataclass(frozen=True)
class EpochShard:
    """One reading of a shard in an epoch.

    file: the shard
    keep: share of its rows that are used
    """

    file: ShardFile
    keep: float = 1.0


class StreamedSets:
    """Several training sets with sampling weights, read by streaming.

    specs: DATA of each set
    weights: as in `WeightedConcat`: with 2 each shard is read twice in an epoch; with 0.5 a random half of the shards
    cache: the cache of shards on disk

    aliases: as in `ShardListing`
    """

    def __init__(self, specs: Sequence[str], weights: Sequence[float], cache: ShardCache):
        listings = [_shards_of(s) for s in specs]
        self.sets, self.weights, self.cache = [x.shards for x in listings], list(weights), cache
        self.aliases = {k: v for x in listings for k, v in x.aliases.items()}
        self._aliases_of = {s.url: x.aliases for x in listings for s in x.shards}
        self.spec = " + ".join(public_url(s) for s in specs)
        self.notes: Counter[str] = Counter()
        first = [row for shards in self.sets for row in self._first_rows(shards)]
        self.columns = {c for row in first if row.meta for c in json.loads(row.meta)}
        """The metadata columns of the first rows of the sets."""
        self.present = {m: np.array([m in row.values for row in first], bool) for m in modalities.names()}
        self.modalities = [m for m in modalities.names() if self.present[m].any()]
        self.present = {m: self.present[m] for m in self.modalities}
        """modality -> bool [n], which of the first rows of the sets have a value."""

    def aliases_of(self, shard: ShardFile) -> dict[str, str]:
        """The aliases of the set that a shard is in."""
        return self._aliases_of[shard.url]

    @property
    def rows(self) -> int | None:
        """The number of rows in an epoch; None if it is unknown because a shard is not listed in an index.json."""
        total = 0.0
        for shards, weight in zip(self.sets, self.weights, strict=True):
            counts = [s.entry["rows"] for s in shards if s.entry]
            if len(counts) < len(shards):
                return None
            total += weight * sum(counts)
        return round(total)

    @property
    def fingerprint(self) -> str:
        """SHA-256 hash of the names of all shards, their hashes where index.json has them, and the weights."""
        digest = hashlib.sha256()
        for shards, weight in zip(self.sets, self.weights, strict=True):
            digest.update(f"{weight:g}\n".encode())
            for s in shards:
                digest.update(f"{s.name}\0{s.entry['sha256'] if s.entry else ''}\n".encode("utf-8", "replace"))
        return digest.hexdigest()

    def epoch_shards(self, seed: int, epoch: int) -> list[EpochShard]:
        """All readings of shards in an epoch, in random order."""
        rng = np.random.default_rng([seed, epoch, 2])
        chosen: list[EpochShard] = []
        for shards, weight in zip(self.sets, self.weights, strict=True):
            times, fraction = divmod(weight, 1.0)
            chosen += [EpochShard(s) for s in shards] * int(times)
            if (share := fraction * len(shards)) > 1e-9:
                some = rng.permutation(len(shards))[: math.ceil(share)]
                chosen += [EpochShard(shards[i], share / len(some)) for i in some]
        return [chosen[i] for i in rng.permutation(len(chosen))]

    def read(self, shard: ShardFile, notes: Counter[str], table: TableBuilder | None = None) -> Iterator[StreamedRow]:
        """Yield the rows of a shard. Raises DataError if it cannot be read, or has another number of rows than in its index.json.

        table: as in `stream_rows`
        """
        count = 0
        with self.cache.open(shard) as raw, decompressed(raw, shard.url) as file:
            for row in stream_rows(file, shard.url, notes, table):
                row.place = (0, count)
                count += 1
                yield row
        if shard.entry and shard.entry["rows"] != count:
            raise DataError(f"{shard.url}: {count} rows, index.json says {shard.entry['rows']}; copy it again, or pack again")

    def _first_rows(self, shards: list[ShardFile]) -> list[StreamedRow]:
        """The first rows of some shards of a set, spread evenly over it: a set may be sorted by modality.

        Further shards are read if these have no row. Damage is an error, or counted, when a shard is read as a whole. Raises DataError if
        there is no row at all.
        """
        spread = [round(i) for i in np.linspace(0, len(shards) - 1, min(len(shards), FIRST_SHARDS))]
        rows: list[StreamedRow] = []
        fault: DataError | None = None
        for number, i in enumerate(dict.fromkeys([*spread, *range(len(shards))])):
            if rows and number >= FIRST_SHARDS:
                break
            try:
                rows += _rows_at_start(shards[i])
            except ServerUnreachable:
                raise
            except DataError as e:
                fault = fault or e
        if rows:
            return rows
        raise fault or DataError(f"{shards[0].url}: no sample with a known modality in any shard")

    def warn(self) -> None:
        """Issue a DataWarning for each kind of sample or value that was skipped so far, with its count, and forget the counts."""
        for what, count in self.notes.items():
            warnings.warn(f"{self.spec}: {count} {what}", DataWarning, stacklevel=3)
        self.notes.clear()


def _rows_at_start(shard: ShardFile) -> list[StreamedRow]:
    """The first FIRST_ROWS rows of a shard."""
    with ShardCache(0).open(shard) as raw, decompressed(raw, shard.url) as file:
        return list(itertools.islice(stream_rows(file, shard.url, Counter()), FIRST_ROWS))


def _shards_of(spec: str) -> ShardListing:
    """List the shards of DATA for streaming: a directory, brace pattern, URL, or `pipe:COMMAND`. Nothing is fetched but index.json."""
    if not spec.startswith("pipe:"):
        return list_shards(spec, SUFFIXES)
    import braceexpand

    return ShardListing([ShardFile(c.removeprefix("pipe:").strip(), c, "", remote=c) for c in braceexpand.braceexpand(spec)])
