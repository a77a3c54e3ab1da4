"""Blocks of streamed rows: their values as signals to encode, and what a pass over the shards makes of them."""

import contextlib
import functools
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from mmtune import modalities as table
from mmtune.contracts import Signal
from mmtune.data.shards.tar_stream import StreamedRow
from mmtune.errors import DataError, Rejected

BLOCK = 8
"""Batches of rows that are in memory at once."""
Wanted: TypeAlias = tuple[str, str | None]
"""(modality, prompt role) of vectors."""
Bad: TypeAlias = dict[str, dict[int, tuple[str, str]]]
"""Modality -> {number of a row: (its id, why its value cannot be decoded)}."""


@dataclass
class RowBlock:
    """What a pass makes of some consecutive rows of a shard.

    rows: number of rows
    vectors: encoded values, {(modality, role): float32 [n, D]}
    at: modality -> int64 [n], the numbers of the encoded rows in the shard
    labels: modality -> int64 [n], their content labels
    hashes: modality -> (uint64 [n], the values' hashes for near-duplicates; bool [n], False where a value has none)
    bad: values that cannot be decoded, by their rows in the shard
    table: the columns of all rows of the shard, in its last block, if they are wanted
    """

    rows: int = 0
    vectors: dict[Wanted, np.ndarray] = field(default_factory=dict)
    at: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    hashes: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    bad: Bad = field(default_factory=dict)
    table: pa.Table | None = None


def pack_blocks(blocks: Sequence[RowBlock]) -> bytes:
    """Convert blocks to bytes, to send them to other processes."""
    arrays: dict[str, np.ndarray] = {}
    header = []
    for n, b in enumerate(blocks):
        header.append(
            {
                "rows": b.rows,
                "vectors": [list(w) for w in b.vectors],
                "at": list(b.at),
                "hashes": list(b.hashes),
                "bad": {m: [[i, *why] for i, why in of_rows.items()] for m, of_rows in b.bad.items()},
            }
        )
        arrays |= {f"{n}.vectors.{k}": v for k, v in enumerate(b.vectors.values())}
        arrays |= {f"{n}.at.{m}": v for m, v in b.at.items()} | {f"{n}.labels.{m}": v for m, v in b.labels.items()}
        arrays |= {f"{n}.hashes.{m}.{k}": v for m, pair in b.hashes.items() for k, v in enumerate(pair)}
        if b.table is not None:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, b.table.schema) as writer:
                writer.write_table(b.table)
            arrays[f"{n}.table"] = np.frombuffer(sink.getvalue(), np.uint8)
    out = io.BytesIO()
    np.savez(out, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def unpack_blocks(data: bytes) -> Iterator[RowBlock]:
    """Yield the blocks that `pack_blocks` has converted."""
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    for n, b in enumerate(json.loads(arrays["header"].tobytes())):
        table = None
        if f"{n}.table" in arrays:
            table = pa.ipc.open_stream(pa.py_buffer(arrays[f"{n}.table"].tobytes())).read_all()
        yield RowBlock(
            b["rows"],
            {(m, role): arrays[f"{n}.vectors.{k}"] for k, (m, role) in enumerate(b["vectors"])},
            {m: arrays[f"{n}.at.{m}"] for m in b["at"]},
            {m: arrays[f"{n}.labels.{m}"] for m in b["at"]},
            {m: (arrays[f"{n}.hashes.{m}.0"], arrays[f"{n}.hashes.{m}.1"]) for m in b["hashes"]},
            {m: {i: (id, why) for i, id, why in of_rows} for m, of_rows in b["bad"].items()},
            table,
        )


def row_blocks(rows: Iterable[StreamedRow], size: int) -> Iterator[list[StreamedRow]]:
    """Yield the rows in lists of at most `size`."""
    iterator = iter(rows)
    while block := list(itertools.islice(iterator, size)):
        yield block


def distinct_signals(
    modality: str, rows: Sequence[StreamedRow], url: str, skip_bad: bool
) -> tuple[list[Callable[[], Signal]], list[StreamedRow], dict[int, str]]:
    """Return (functions that decode the distinct values of `rows`, rows whose values can be decoded, {content label: why not}).

    With `skip_bad` every value is decoded beforehand, because a value that cannot be decoded must not reach the batch; without, calling
    the function raises DataError.
    """
    kind, first, bad = table.get(modality), dict[int, StreamedRow](), dict[int, str]()
    for row in rows:
        label = row.labels[modality]
        if label in first or label in bad:
            continue
        first[label] = row
        if skip_bad:
            try:
                kind.decode(row.values[modality])
            except Rejected as e:
                bad[label] = str(e)
                del first[label]
    signals: list[Callable[[], Signal]] = [functools.partial(_decode, modality, row, url) for row in first.values()]
    return signals, [row for row in rows if row.labels[modality] not in bad], bad


class HashedSignals:
    """Signals of a modality, of which each is hashed for the search for near-duplicates when it is decoded."""

    def __init__(self, modality: str, signals: Sequence[Callable[[], Signal]]):
        self.kind, self.signals = table.get(modality), signals
        self.keys: list[int | None] = [None] * len(signals)

    def decode(self, i: int) -> Signal:
        """Decode signal i, and keep its hash."""
        signal = self.signals[i]()
        with contextlib.suppress(Rejected):
            self.keys[i] = self.kind.near_duplicate_key(signal)
        return signal


def hash_arrays(keys: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes for the search for near-duplicates as arrays: (uint64 [n], bool [n], False where there is none)."""
    return np.array([k or 0 for k in keys], np.uint64), np.array([k is not None for k in keys], bool)


def _decode(modality: str, row: StreamedRow, url: str) -> Signal:
    try:
        return table.get(modality).decode(row.values[modality])
    except Rejected as e:
        raise DataError(f"{url}: row {row.id!r}: {modality}: {e}; --skip-bad skips such values") from None
