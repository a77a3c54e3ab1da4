"""Lanes: the parts into which the shards of an epoch are divided for streaming.

Lane number l of L reads the shards l, l + L, l + 2L, ... of the epoch one after another in a background thread, and draws rows at
random from a shuffle buffer. The rows that a lane draws depend only on the data, the seed and the epoch, not on threads or on the
process that runs the lane. So batches are the same with any number of processes.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, TypedDict

from mmtune.data.loader.row_classes import RowClasses
from mmtune.data.shards.streamed_sets import EpochShard, StreamedSets
from mmtune.data.shards.tar_stream import StreamedRow
from mmtune.errors import DataError

CHUNK_ROWS, CHUNK_BYTES, CHUNKS = 64, 4 << 20, 3
"""A reading thread passes rows on in chunks of at most so many rows or bytes, and is at most so many chunks ahead."""
BUFFER_BYTES = 1 << 30
"""Limit of the memory of the shuffle buffers of all lanes together (see `StreamedRow.size`). Large rows make the buffers shorter."""

Place = tuple[int, int]
"""(number of the shard in the epoch, number of the row in it)."""


class LaneState(TypedDict):
    """Where a lane is, as plain data that JSON can represent.

    next: place of the next row to read
    buffer: places of the rows in the shuffle buffer, in order: "SHARD:ROW SHARD:ROW ..."
    draws: number of rows drawn so far
    """

    next: list[int]
    buffer: str
    draws: int


class LaneSnapshot(NamedTuple):
    """The fields of a `LaneState` before they are converted to plain data."""

    next: Place
    buffer: list[Place]
    draws: int

    def to_state(self) -> LaneState:
        """Convert to plain data."""
        return {"next": list(self.next), "buffer": " ".join(f"{s}:{r}" for s, r in self.buffer), "draws": self.draws}


@dataclass
class ReadCount:
    """rows, seconds: what a lane's thread has read so far, and how long that took, waiting for room in the buffer left out."""

    rows: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class LaneOptions:
    """What all lanes of an epoch have in common.

    seed, epoch: decide the order of rows
    buffer_rows: rows in the shuffle buffer of a lane
    buffer_bytes: bytes of memory from which no further row is added to it
    usable: whether a row can be trained on
    skip_damaged: continue with the next shard if one is damaged, and count it
    classes: adds class labels to the rows
    columns: the metadata columns of rows that are needed afterwards; the others are not kept
    """

    seed: int
    epoch: int
    buffer_rows: int
    buffer_bytes: int
    usable: Callable[[StreamedRow], bool]
    skip_damaged: bool = False
    classes: RowClasses | None = None
    columns: tuple[str, ...] = ()


def _random(*parts: object) -> int:
    """A 64-bit random number that depends on `parts` only."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@dataclass
class Lane:
    """One lane of an epoch. `close` must be called at the end.

    number: number of the lane
    shards: {number of the shard in the epoch: shard} of this lane, in order
    state: where to continue; None means at the start
    count: is added to as rows are read
    """

    number: int
    shards: dict[int, EpochShard]
    sets: StreamedSets
    options: LaneOptions
    state: LaneState | None = None
    count: ReadCount = field(default_factory=ReadCount)
    notes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._buffer: list[StreamedRow] = []
        self._bytes = 0
        self._draws = self.state["draws"] if self.state else 0
        self._next: Place = (self.state["next"][0], self.state["next"][1]) if self.state else (0, 0)
        self._chunks: queue.Queue[list[StreamedRow] | BaseException | None] = queue.Queue(CHUNKS)
        self._rows: Iterator[StreamedRow] = iter(())
        self._read_all, self._stop = False, threading.Event()
        self._to_restore = _parse_places(self.state["buffer"]) if self.state else []
        self._thread = threading.Thread(target=self._read, name=f"mmtune-lane-{self.number}", daemon=True)
        self._thread.start()

    # --- the reading thread --------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            chunk, size, begin = list[StreamedRow](), 0, time.perf_counter()
            for row in self._read_rows():
                chunk.append(row)
                size += row.size
                if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
                    self._count(chunk, begin)
                    self._put(chunk)
                    chunk, size, begin = [], 0, time.perf_counter()
                if self._stop.is_set():
                    return
            self._count(chunk, begin)
            self._put(chunk)
            self._put(None)
        except BaseException as e:
            self._put(e)

    def _count(self, chunk: list[StreamedRow], begin: float) -> None:
        self.count.rows += len(chunk)
        self.count.seconds += time.perf_counter() - begin

    def _put(self, chunk: list[StreamedRow] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._chunks.put(chunk, timeout=0.2)
                return
            except queue.Full:
                continue

    def _read_rows(self) -> Iterator[StreamedRow]:
        """The rows that are not drawn yet, in the order of the shards: first those of a restored shuffle buffer."""
        wanted = set(self._to_restore)
        with_wanted = {shard for shard, _ in wanted}
        for number, shard in self.shards.items():
            if number < self._next[0] and number not in with_wanted:
                continue
            for row in self._rows_of(number, shard):
                if row.place in wanted or row.place >= self._next:
                    yield row

    def _rows_of(self, number: int, shard: EpochShard) -> Iterable[StreamedRow]:
        """The usable rows of one shard. A damaged shard gives the rows before the damage, if the options allow that."""
        options = self.options
        try:
            for row in self.sets.read(shard.file, self.notes):
                row.place = (number, row.place[1])
                if shard.keep < 1 and _random(options.seed, options.epoch, 3, row.place) >= shard.keep * 2**64:
                    continue
                if options.usable(row):
                    if options.classes is not None:
                        options.classes.add(row, shard.file, self.notes)
                    row.keep_columns(options.columns)
                    yield row
                else:
                    self.notes["rows left out: they do not have both sides of a pair"] += 1
        except DataError as e:
            if not options.skip_damaged:
                raise
            self.notes[f"damaged shards, of which the rest is left out ({e})"] += 1

    # --- drawing -------------------------------------------------------------------------------------------------

    def draw(self, count: int) -> list[StreamedRow]:
        """Draw `count` rows at random from the shuffle buffer; fewer if the lane ends. Errors of the reading thread are raised."""
        drawn = []
        for _ in range(count):
            self._fill()
            if not self._buffer:
                break
            at = _random(self.options.seed, self.options.epoch, self.number, self._draws) % len(self._buffer)
            row, self._buffer[at] = self._buffer[at], self._buffer[-1]
            self._buffer.pop()
            self._bytes -= row.size
            self._draws += 1
            drawn.append(row)
        return drawn

    @property
    def is_exhausted(self) -> bool:
        """Whether all rows were drawn."""
        self._fill()
        return not self._buffer

    def _fill(self) -> None:
        """Read rows until the shuffle buffer is full or the lane has ended."""
        if self._to_restore:
            self._restore()
        while (
            not self._read_all
            and len(self._buffer) < self.options.buffer_rows
            and (self._bytes < self.options.buffer_bytes or not self._buffer)
        ):
            row = self._next_row()
            if row is not None:
                self._append(row)

    def _append(self, row: StreamedRow) -> None:
        self._buffer.append(row)
        self._bytes += row.size
        self._next = (row.place[0], row.place[1] + 1)

    def _next_row(self) -> StreamedRow | None:
        """The next row that was read; None at the end of the lane."""
        while not self._read_all:
            row = next(self._rows, None)
            if row is not None:
                return row
            chunk = self._chunks.get()
            if isinstance(chunk, BaseException):
                self._read_all = True
                raise chunk
            if chunk is None:
                self._read_all = True
            else:
                self._rows = iter(chunk)
        return None

    def _restore(self) -> None:
        """Fill the shuffle buffer with the rows at the places `_to_restore`, in this order.

        Raises DataError if they are not there any more.
        """
        places, self._to_restore = self._to_restore, []
        found: dict[Place, StreamedRow] = {}
        following = self._next
        while len(found) < len(places):
            row = self._next_row()
            if row is None or row.place >= following:
                raise DataError(f"{self.sets.spec}: shards have changed since the checkpoint was written; train again")
            found[row.place] = row
        self._buffer = [found[p] for p in places]
        self._bytes = sum(r.size for r in self._buffer)

    def snapshot(self) -> LaneSnapshot:
        """Where the lane is after the rows that were drawn so far."""
        return LaneSnapshot(self._next, self._to_restore or [row.place for row in self._buffer], self._draws)

    def close(self) -> None:
        """Stop the reading thread."""
        self._stop.set()


def _parse_places(text: str) -> list[Place]:
    return [(int(shard), int(row)) for shard, _, row in (p.partition(":") for p in text.split())]
