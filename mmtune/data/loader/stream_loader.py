"""The loader of streamed training sets: makes batches of rows that are read from shards in order, without an index of rows.

The batches of an epoch depend only on the data and the seed. Each process reads its own lanes (`stream_lanes`), and prepares the
items that it read. Rows with a value that cannot be decoded are left out and counted.
"""

import json
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypedDict

import numpy as np
import torch

from mmtune import modalities
from mmtune.contracts import Augmentation, Batch, LoadTimes, Pair, Preprocess
from mmtune.data.identity_labels import first_occurrences
from mmtune.data.loader.loader import decoded_size
from mmtune.data.loader.row_classes import RowClasses
from mmtune.data.loader.stacked_inputs import StackedInputs
from mmtune.data.loader.stream_batches import DrawnBatch, Prepared, StackedPrepared, divide_evenly
from mmtune.data.loader.stream_exchange import Inputs, Item, StreamExchange
from mmtune.data.loader.stream_lanes import BUFFER_BYTES, Lane, LaneOptions, LaneState, ReadCount
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.tar_stream import StreamedRow
from mmtune.errors import DataError, Rejected
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.plugins import nearest
from mmtune.runtime.worker_pool import WorkerKind, WorkerPool

EXAMPLES = 3
"""Number of reasons for left out rows that are kept for the warning."""


class StreamState(TypedDict):
    """Where an epoch is, as plain data that JSON can represent.

    lanes: number of lanes
    drawn: number of batches that were drawn so far
    states: {number of a lane: its state}
    data: fingerprint of the training sets
    """

    lanes: int
    drawn: int
    states: dict[str, LaneState]
    data: str


class RowsCheck(Protocol):
    """Gets the rows of all batches, e.g. `StreamedRowsCheck`."""

    def add(self, labels: Mapping[str, np.ndarray], ids: Sequence[str]) -> None:
        """Get the labels, by name, and the ids of the rows of a batch."""

    def finish(self) -> None:
        """Called at the end of each epoch, also of one that is not read to its end."""


class StreamLoader:
    """Prepares batches of streamed training sets.

    sets: the training sets
    preprocess: modality -> preprocessing of its tower, for the towers that are trained
    augment: modality -> augmentation
    pairs: the pairs of modalities that are trained; rows without both sides of one are left out
    batch_size: rows of a batch, over all processes; only the last batch of an epoch may be smaller
    shuffle_buffer: rows from which a batch is drawn at random, over all processes
    lanes: shards that are read at once, over all processes; fewer if there are fewer shards, and at least one for each process
    skip_damaged: continue when a shard is damaged or truncated, with a warning
    check: gets the rows of every batch
    classes: adds class labels to the rows; batches have them in `labels`
    The other parameters are those of `Loader`.
    """

    def __init__(
        self,
        sets: StreamedSets,
        preprocess: Mapping[str, Preprocess],
        augment: Mapping[str, Augmentation],
        *,
        pairs: Sequence[Pair],
        batch_size: int,
        seed: int = 0,
        workers: int = 2,
        worker_kind: WorkerKind = "threads",
        shuffle_buffer: int = 4096,
        lanes: int = 8,
        columns: Mapping[str, str] | None = None,
        processes: Processes = SINGLE_PROCESS,
        never_empty: bool = False,
        skip_damaged: bool = False,
        check: RowsCheck | None = None,
        classes: RowClasses | None = None,
    ):
        self.sets, self.preprocess, self.augment, self.pairs = sets, dict(preprocess), dict(augment), list(pairs)
        self.batch_size, self.seed, self.shuffle_buffer, self.lanes = batch_size, seed, shuffle_buffer, lanes
        prepare: Callable[..., Prepared | StackedPrepared] = self._prepare
        self.pool = WorkerPool(self._prepare_stacked if worker_kind == "processes" else prepare, workers, worker_kind)
        self.processes, self.never_empty, self.skip_damaged = processes, never_empty, skip_damaged
        self.input_size = {m: decoded_size(p, self.augment.get(m)) for m, p in self.preprocess.items()}
        self.names = ["id", "group", *modalities.names(), *(classes.names if classes else ())]
        self.check, self.classes, self.columns = check, classes, dict(columns or {})
        for name, key in self.columns.items():
            if name not in sets.columns:
                raise DataError(
                    f"{key}: {sets.spec}: none of the first rows has the column {name!r}{nearest(name, sorted(sets.columns))}"
                )
        self._exchange = StreamExchange(processes, self.names, {c: f"{key}: {sets.spec}" for c, key in self.columns.items()})
        self._fingerprint = sets.fingerprint
        self._states: deque[tuple[int, int, DrawnBatch]] = deque(maxlen=self.pool.ahead + 4)
        self._read: defaultdict[int, ReadCount] = defaultdict(ReadCount)
        self._begin: tuple[int, StreamState] | None = None
        self.left_out = 0
        self._examples: list[str] = []

    # --- position ------------------------------------------------------------------------------------------------

    def state(self, batches: int) -> StreamState | None:
        """The state after the first `batches` batches of the epoch that is running, counted as in `epoch`; None at its start.

        Must be called by all processes, for a batch among the last that `epoch` has yielded (see `keep_states`).
        """
        if batches == 0:
            return None
        if self._begin is not None and batches == self._begin[0]:
            return self._begin[1]
        for number, lanes, drawn in list(self._states):  # another thread may be loading further batches
            if number == batches:
                own = {lane: snapshot.to_state() for lane, snapshot in drawn.states.items()}
                parts = self.processes.gather_bytes(json.dumps(own).encode())
                states = {lane: state for part in parts for lane, state in json.loads(part).items()}
                return {"lanes": lanes, "drawn": drawn.number, "states": states, "data": self._fingerprint}
        raise RuntimeError(f"the position after batch {batches} is not kept any more; keep_states was too small")

    def keep_states(self, batches: int) -> None:
        """Keep the states of so many batches before the one that was yielded last: they may be asked for when others are loaded already."""
        self._states = deque(self._states, maxlen=self.pool.ahead + 4 + batches)

    # --- batches -------------------------------------------------------------------------------------------------

    def epoch(self, epoch: int, batches: int = 0, state: StreamState | None = None) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, from its start or, after the first `batches` batches, from `state` on.

        Raises DataError if the data differ from those of `state`, or if a shard cannot be read.
        """
        if state is not None and state["data"] != self._fingerprint:
            raise DataError(f"{self.sets.spec}: the shards differ from those that the checkpoint was trained on; train again")
        self.pool.start()  # before the threads of the lanes
        lanes, count = self._open_lanes(epoch, state)
        number = batches
        self._states.clear()
        self._begin = None if state is None else (batches, state)
        rows_before, seen = 0, False
        pending: deque[DrawnBatch] = deque()

        def tasks() -> Iterator[tuple[list[StreamedRow], int]]:
            for drawn in self._draw_batches(lanes, count, state["drawn"] if state else 0):
                pending.append(drawn)
                yield drawn.rows, epoch

        preparing = self.pool.map(tasks())
        try:
            for prepared in preparing:
                drawn = pending.popleft()
                drawn.prepared = prepared.unstack() if isinstance(prepared, StackedPrepared) else prepared
                batch = self._finish(drawn, rows_before)
                rows_before += len(drawn)
                if batch is not None:
                    seen, number = True, number + 1
                    drawn.rows, drawn.lanes, drawn.prepared = [], [], None
                    self._states.append((number, count, drawn))
                    yield batch
        finally:
            preparing.close()
            for lane in lanes.values():
                lane.close()
            self._warn(lanes)
            if self.check is not None:
                self.check.finish()
        if not seen and state is None:
            raise DataError(f"{self.sets.spec}: an epoch without a batch: no row could be used{''.join(self._examples[:1])}")

    def reading_rate(self) -> float:
        """Rows per second at which this process reads shards, all epochs so far, if nothing but reading takes time; 0 before a row is read.

        Batches do not show it at first: they are made from rows that were read ahead.
        """
        return sum(c.rows / c.seconds for c in self._read.values() if c.seconds > 0)

    def close(self) -> None:
        """End the worker processes; afterwards `epoch` starts others."""
        self.pool.close()

    def _open_lanes(self, epoch: int, state: StreamState | None) -> tuple[dict[int, Lane], int]:
        """Open the lanes of this process. Returns ({number: lane}, number of lanes of all processes)."""
        shards = dict(enumerate(self.sets.epoch_shards(self.seed, epoch)))
        count = state["lanes"] if state else min(len(shards), max(self.lanes, self.processes.world_size))
        own = range(count)[self.processes.local_slice(count)]
        sizes = max(1, self.shuffle_buffer // count), BUFFER_BYTES // count
        options = LaneOptions(self.seed, epoch, *sizes, self._is_usable, self.skip_damaged, self.classes, tuple(self.columns))
        return {
            i: Lane(
                i,
                {n: s for n, s in shards.items() if n % count == i},
                self.sets,
                options,
                state["states"][str(i)] if state else None,
                self._read[i],
            )
            for i in own
        }, count

    def _is_usable(self, row: StreamedRow) -> bool:
        return any(a in row.values and b in row.values for a, b in self.pairs)

    def _draw_batches(self, lanes: Mapping[int, Lane], count: int, number: int) -> Iterator[DrawnBatch]:
        """Draw the rows of all batches after the first `number`. A single row at the end is added to the batch before it."""
        finished = self._exchange.rows({n: ([], lane.is_exhausted) for n, lane in lanes.items()})
        alive, before = [x.lane for x in finished if not x.exhausted], None
        while alive:
            number += 1
            drawn = DrawnBatch(number=number)
            while alive and len(drawn) < self.batch_size:
                part, exhausted = self._draw(lanes, divide_evenly(self.batch_size - len(drawn), alive, number))
                drawn.add(part)
                alive = [lane for lane in alive if lane not in exhausted]
            if before is not None and len(drawn) == 1:
                before.add(drawn)
                drawn = DrawnBatch()
            if before is not None:
                yield before
            before = drawn if len(drawn) else None
        if before is not None:
            yield before

    def _draw(self, lanes: Mapping[int, Lane], shares: Mapping[int, int]) -> tuple[DrawnBatch, set[int]]:
        """Draw `shares` {lane: number of rows}. Returns the rows, and the lanes that are exhausted now."""
        drawn: dict[int, tuple[list[StreamedRow], bool]] = {}
        begin = time.perf_counter()
        for number, lane in lanes.items():
            if number in shares:
                rows = lane.draw(shares[number])
                drawn[number] = rows, lane.is_exhausted
        waited = time.perf_counter() - begin
        everyone = self._exchange.rows(drawn)
        states = {number: lane.snapshot() for number, lane in lanes.items()}
        rows = [row for of_lane, _ in drawn.values() for row in of_lane]
        return DrawnBatch(everyone, rows, states, waited=waited), {x.lane for x in everyone if x.exhausted}

    # --- items ---------------------------------------------------------------------------------------------------

    def _prepare(self, rows: Sequence[StreamedRow], epoch: int) -> Prepared:
        """Decode, augment and preprocess the distinct values of `rows`."""
        done = Prepared({}, {})
        for m in self.preprocess:
            for row in rows:
                item = (m, row.labels[m])
                if m not in row.values or item in done.inputs or item in done.reasons:
                    continue
                done.times.values, done.times.size = done.times.values + 1, done.times.size + len(row.values[m])
                try:
                    done.inputs[item] = self._inputs(m, row, epoch, done.times)
                except Rejected as e:
                    done.reasons[item] = f"{row.id!r}: {m}: {e}"
        return done

    def _prepare_stacked(self, rows: Sequence[StreamedRow], epoch: int) -> "StackedPrepared":
        prepared = self._prepare(rows, epoch)
        return StackedPrepared(StackedInputs.stack(prepared.inputs), prepared.reasons, prepared.times)

    def _inputs(self, modality: str, row: StreamedRow, epoch: int, times: LoadTimes) -> Inputs:
        kind, preprocess, augment = modalities.get(modality), self.preprocess[modality], self.augment.get(modality)
        data, size = row.values[modality], self.input_size[modality]
        begin = time.perf_counter()
        signal = kind.decode(data) if size is None else kind.decode_scaled(data, size)
        decoded = time.perf_counter()
        is_deterministic = getattr(preprocess, "is_deterministic", None)
        if augment is None and (is_deterministic is None or is_deterministic(signal)):
            inputs = preprocess(signal)
        else:
            rng = random.Random(hash((self.seed, epoch, row.labels[modality], row.labels["id"])))
            inputs = preprocess(augment(signal, rng) if augment else signal, rng)
        times.decode += decoded - begin
        times.preprocess += time.perf_counter() - decoded
        return inputs

    def _finish(self, drawn: DrawnBatch, rows_before: int) -> Batch | None:
        """Make the batch of all rows whose values can be decoded; None if none is left."""
        assert drawn.prepared is not None
        prepared = drawn.prepared
        reasons = self._exchange.reasons(prepared.reasons)
        labels = np.concatenate([x.labels for x in drawn.lanes])
        ranks = np.repeat([x.rank for x in drawn.lanes], [len(x.ids) for x in drawn.lanes])
        ids = [i for x in drawn.lanes for i in x.ids]
        columns = {name: labels[:, k] for k, name in enumerate(self.names)}
        numbers = labels[:, len(self.names) :].copy().view(np.float64).astype(np.float32)
        kept = np.ones(len(ids), bool)
        for m, label in reasons:
            kept &= columns[m] != label
        self._count(reasons, int((~kept).sum()))
        if not kept.any():
            return None
        inputs: dict[str, Inputs] = {}
        item_of_row, owners = self._items(columns, kept, ranks)
        received = self._send(prepared, owners)
        for m, preprocess in self.preprocess.items():
            own = [
                received[m, label] if (m, label) in received else prepared.inputs[m, label]
                for label in self._own_items(owners[m])
            ]
            if own:
                inputs[m] = preprocess.collate(own)
        kept_rows = np.flatnonzero(kept)
        if self.check is not None:
            self.check.add({k: v[kept] for k, v in columns.items()}, [ids[i] for i in kept_rows])
        return Batch(
            ids=[ids[i] for i in kept_rows],
            index=torch.from_numpy(kept_rows + rows_before),
            is_query=torch.ones(len(kept_rows), dtype=torch.bool),
            inputs=inputs,
            item_of_row={m: torch.from_numpy(items[kept]) for m, items in item_of_row.items()},
            labels={k: torch.from_numpy(v[kept]) for k, v in columns.items()},
            columns={name: torch.from_numpy(numbers[kept, k]) for k, name in enumerate(self.columns)},
            times=replace(prepared.times, read=drawn.waited),
        )

    def _items(
        self, columns: Mapping[str, np.ndarray], kept: np.ndarray, ranks: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, list[tuple[int, int]]]]:
        """Number the distinct values of each modality in the kept rows.

        Returns (modality -> item number of each row, -1 without one; modality -> (content label, rank that read it) of each item).
        """
        item_of_row: dict[str, np.ndarray] = {}
        owners: dict[str, list[tuple[int, int]]] = {}
        for m in self.preprocess:
            labels, items = columns[m], np.full(len(kept), -1, np.int64)
            present = np.flatnonzero(labels)
            owners[m] = []
            if len(present):
                # by the first row before rows are left out, which has decided the random numbers of the augmentation
                first, inverse = first_occurrences(labels[present])
                used = np.unique(inverse[kept[present]])
                new = np.full(len(first), -1, np.int64)
                new[used] = np.arange(len(used))
                items[present] = new[inverse]
                rows = present[first[used]]
                owners[m] = list(zip(labels[rows].tolist(), ranks[rows].tolist(), strict=True))
            item_of_row[m] = items
        return item_of_row, owners

    def _own_items(self, owners: Sequence[tuple[int, int]], rank: int | None = None) -> list[int]:
        """The content labels of the items that a process encodes, by default this one."""
        part = self.processes if rank is None else Processes(rank, self.processes.world_size)
        own = owners[part.local_slice(len(owners))]
        if self.never_empty and not own:
            own = owners[-1:]
        return [label for label, _ in own]

    def _send(self, prepared: Prepared, owners: Mapping[str, list[tuple[int, int]]]) -> dict[Item, Inputs]:
        """Exchange the inputs of items that another process encodes than the one that read them."""
        if self.processes.is_single:
            return {}
        reader = {(m, label): rank for m, of_items in owners.items() for label, rank in of_items}
        moved = {
            (m, label)
            for m, of_items in owners.items()
            for rank in range(self.processes.world_size)
            for label in self._own_items(of_items, rank)
            if reader[m, label] != rank
        }
        if not moved:
            return {}
        own = {item: prepared.inputs[item] for item in sorted(moved) if reader[item] == self.processes.rank}
        return self._exchange.inputs(own)

    # --- what was left out ---------------------------------------------------------------------------------------

    def _count(self, reasons: Mapping[Item, str], rows: int) -> None:
        self.left_out += rows
        if rows:
            self.sets.notes["rows left out, because a value cannot be decoded"] += rows
            self._examples += [f" (e.g. {r})" for r in list(reasons.values())[: EXAMPLES - len(self._examples)]]

    def _warn(self, lanes: Mapping[int, Lane]) -> None:
        """Issue a DataWarning with the counts of this epoch, on rank 0 also those that concern all processes."""
        notes: Counter[str] = Counter()
        for lane in lanes.values():
            notes += lane.notes
        own, self.sets.notes = self.sets.notes, notes
        if self.processes.is_main_process:
            examples = self._examples[0] if self._examples else ""
            self.sets.notes += Counter({what + examples: n for what, n in own.items()})
        self.sets.warn()
        self._examples = []
