"""Rows -> batches: decode, augment, preprocess and collate in threads ahead of the training step; equal content once a batch.

Threads, not processes: Pillow, libsndfile, numpy and torch release the interpreter's lock, and one memory cache serves all.
"""

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import Augmentation, Batch, Preprocess, Signal
from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_occurrences
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.threads import data_thread_pool

BATCHES_AHEAD = 2
"""Batches that are prepared or ready beside one for each worker."""

Inputs: TypeAlias = dict[str, Tensor]
"""What a tower's preprocessing makes of a signal, without a batch axis."""


class ItemCache:
    """Signals or inputs by (modality, content label), in at most `limit` bytes; what no longer fits is made anew each time."""

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.items: dict[tuple[str, int], Signal | Inputs] = {}
        self.lock = threading.Lock()

    def get(self, key: tuple[str, int], make: Callable[[], Signal | Inputs]) -> Signal | Inputs:
        """The cached item, or a new one (cached if there is room)."""
        item = self.items.get(key)
        if item is None:
            item = make()
            size = _size_of(item)
            with self.lock:
                if key not in self.items and self.size + size <= self.limit:
                    self.items[key] = item
                    self.size += size
        return item


def _size_of(item: Signal | Inputs) -> int:
    if isinstance(item, dict):
        return sum(v.untyped_storage().nbytes() for v in item.values())
    if isinstance(item, str):
        return len(item) + 64
    if hasattr(item, "samples"):
        return int(item.samples.nbytes)
    size = getattr(item, "size", (0, 0))
    return int(size[0] * size[1] * len(getattr(item, "getbands", lambda: "???")()))


class Loader:
    """Batches of `data` for the given preprocessing.

    preprocess: modality -> Preprocess of a tower that is trained; augment: modality -> augmentation; columns: numeric metadata
    columns of the objective -> the recipe key that names each; prepared: modality -> content label -> inputs, for modalities that
    need no decoding (stored features of a frozen tower). Augmentation draws from a generator seeded by (seed, epoch, row), so that
    threads do not matter.
    Of several `processes` each prepares its part of a batch's items; ids, item_of_row and labels are the whole batch's.
    never_empty: a process whose part of a modality is empty prepares one item all the same (sharded weights need all processes
    in every forward pass).
    """

    def __init__(
        self,
        data: WeightedConcat,
        preprocess: Mapping[str, Preprocess],
        augment: Mapping[str, Augmentation],
        *,
        seed: int = 0,
        workers: int = 2,
        cache_bytes: int = 0,
        columns: Mapping[str, str] | None = None,
        processes: Processes = SINGLE_PROCESS,
        prepared: Mapping[str, Mapping[int, Inputs]] | None = None,
        never_empty: bool = False,
    ):
        self.data, self.preprocess, self.augment = data, dict(preprocess), dict(augment)
        self.prepared = dict(prepared or {})
        self.seed, self.workers, self.cache = seed, workers, ItemCache(cache_bytes)
        self.processes, self.never_empty = processes, never_empty
        self.input_size = {m: _input_size(p, self.augment.get(m)) for m, p in self.preprocess.items()}
        self.columns = {name: _numeric_column(data, name, key) for name, key in (columns or {}).items()}

    def epoch(
        self,
        epoch: int,
        batches: Sequence[np.ndarray],
        hard_negatives: Callable[[np.ndarray], Mapping[str, np.ndarray] | None] | None = None,
    ) -> Iterator[Batch]:
        """The batches in order, prepared ahead.

        hard_negatives(rows): mined negatives that join the batch as candidates only, direction -> [2, n]: positions in `rows`, and
        the rows mined for them.
        """
        with data_thread_pool(self.workers) as pool:
            pending: deque[Future[Batch]] = deque()
            try:
                for rows in batches:
                    mined = hard_negatives(rows) if hard_negatives else None
                    pending.append(pool.submit(self.batch, rows, epoch, mined))
                    if len(pending) >= self.workers + BATCHES_AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def batch(self, rows: np.ndarray, epoch: int, hard_negatives: Mapping[str, np.ndarray] | None = None) -> Batch:
        """One batch: `rows`, then the mined negatives with is_query False. Of a mined negative only the modality that it was mined
        for is read and encoded."""
        n_queries, only, hard, parts = len(rows), [""] * len(rows), {}, [rows]
        for direction, (position, mined) in (hard_negatives or {}).items():
            unique, inverse = np.unique(mined, return_inverse=True)
            hard[direction] = torch.from_numpy(np.stack([position, len(only) + inverse]))
            only += [direction.partition("->")[2]] * len(unique)
            parts.append(unique)
        rows, only_modality = np.concatenate(parts), np.array(only)
        inputs: dict[str, Inputs] = {}
        item_of_row: dict[str, Tensor] = {}
        for m in self.preprocess:
            present = np.flatnonzero(self.data.present[m][rows] & ((only_modality == "") | (only_modality == m)))
            items = np.full(len(rows), -1, np.int64)
            if len(present):
                first, items[present] = first_occurrences(self.data.labels[m][rows[present]])
                inputs |= self._local_inputs(m, rows[present[first]], epoch)
            item_of_row[m] = torch.from_numpy(items)
        return Batch(
            ids=[self.data.ids[i] for i in rows],
            index=torch.from_numpy(rows.astype(np.int64)),
            is_query=torch.arange(len(rows)) < n_queries,
            inputs=inputs,
            item_of_row=item_of_row,
            labels={k: torch.from_numpy(v[rows]) for k, v in self.data.labels.items()},
            columns={k: torch.from_numpy(v[rows]) for k, v in self.columns.items()},
            hard_negatives=hard,
        )

    def _local_inputs(self, modality: str, rows: np.ndarray, epoch: int) -> dict[str, Inputs]:
        """{modality: inputs} of this process's part of the unique items, whose rows are `rows`; empty where it has none."""
        local = rows[self.processes.local_slice(len(rows))]
        if self.never_empty and not len(local):
            local = rows[-1:]
        if not len(local):
            return {}
        return {modality: self.preprocess[modality].collate([self._item(modality, int(row), epoch) for row in local])}

    def _item(self, modality: str, row: int, epoch: int) -> Inputs:
        """The inputs of one row's value; what is the same in every epoch is cached."""
        preprocess, augment = self.preprocess[modality], self.augment.get(modality)
        label = int(self.data.labels[modality][row])
        if modality in self.prepared:
            if label not in self.prepared[modality]:
                raise DataError(f"{self.data.spec}: row {self.data.ids[row]!r} changed while training; train again")
            return self.prepared[modality][label]
        is_deterministic = getattr(preprocess, "is_deterministic", None)  # None: always, without augmentation

        def make() -> Signal | Inputs:
            signal = decode_row(self.data, row, modality, self.input_size[modality])
            same = augment is None and (is_deterministic is None or is_deterministic(signal))
            return preprocess(signal) if same else signal

        item = self.cache.get((modality, label), make)
        if isinstance(item, dict):
            return item
        rng = random.Random(hash((self.seed, epoch, label, int(self.data.labels["id"][row]))))
        return preprocess(augment(item, rng) if augment else item, rng)


def _input_size(preprocess: Preprocess, augment: "Augmentation | None") -> float | None:
    """The size that training needs signals to be decoded at; None: their own.

    Only for training: what is embedded is always decoded whole, so that its vector is that of the upstream preprocessing.
    """
    input_size = getattr(preprocess, "input_size", None)
    needed = input_size * getattr(augment, "zoom", 1.0) if input_size else math.inf
    return needed if math.isfinite(needed) else None


def _numeric_column(data: WeightedConcat, name: str, key: str) -> np.ndarray:
    """A metadata column as float32 [N]; NaN where a row has none. DataError names the recipe key, and the first value that is not a
    number."""
    out = np.full(len(data), np.nan, np.float32)
    try:
        values = data.column(name)
    except DataError as e:
        raise DataError(f"{key}: {e}") from None
    for i, value in enumerate(values):
        if value not in (None, ""):
            try:
                out[i] = float(value)
            except (TypeError, ValueError):
                raise DataError(f"{key}: {data.spec}: column {name!r} of row {data.ids[i]!r} is {value!r}, no number") from None
    return out
