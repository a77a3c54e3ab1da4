"""The data loader: decodes, augments, preprocesses and collates batches in threads or processes, ahead of the training step.

Identical content occurs only once in the inputs of a batch. Threads share one cache in memory; Pillow, libsndfile, numpy and torch
release Python's lock while they work. Processes have no common lock, which matters when many workers prepare small items.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import Augmentation, Batch, LoadTimes, Preprocess, Signal, second_view
from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_occurrences
from mmtune.data.shards.tar_stream import number_of
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.worker_pool import WorkerKind, WorkerPool

Inputs: TypeAlias = dict[str, Tensor]
"""The preprocessed tensors of one item, without a batch axis."""


class ItemCache:
    """An in-memory cache of decoded signals or preprocessed inputs, with (modality, content label) as key.

    Holds at most `limit` bytes. When the cache is full, further items are not cached, and none are evicted.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.items: dict[tuple[str, int], Signal | Inputs] = {}
        self.lock = threading.Lock()

    def get(self, key: tuple[str, int], make: Callable[[], Signal | Inputs]) -> Signal | Inputs:
        """Return the cached item, or create it with `make` and cache it if there is room."""
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
    if hasattr(item, "samples"):  # a sound
        return int(item.samples.nbytes)
    size = getattr(item, "size", (0, 0))  # a PIL image: width x height x number of channels
    return int(size[0] * size[1] * len(getattr(item, "getbands", lambda: "???")()))


class Loader:
    """Prepares batches of `data` for training.

    data: the training data
    preprocess: modality -> preprocessing of its tower, for the towers that are trained
    augment: modality -> augmentation
    seed: random seed; every item has its own random generator, seeded by seed, epoch and row, so threads do not change the result
    workers, worker_kind: number of threads or processes; neither changes a batch
    cache_bytes: memory limit of the cache of decoded or preprocessed items; processes have equal parts of it
    columns: numeric metadata column that the objective needs -> recipe key that names it, for error messages
    processes: in distributed training each rank prepares the inputs of its part of a batch's items; ids, item_of_row and labels
        cover the whole batch on every rank
    prepared: modality -> content label -> inputs that need no decoding: the stored features of a frozen tower
    never_empty: prepare one item even if this rank's part of a batch has no item of a modality; needed for sharded weights (FSDP),
        where all ranks must take part in every forward pass
    views: modality -> "dropout" or "augmentation". Batches then hold a second view of its items in query rows: the same inputs, or
        inputs with another draw of the augmentation
    """

    def __init__(
        self,
        data: WeightedConcat,
        preprocess: Mapping[str, Preprocess],
        augment: Mapping[str, Augmentation],
        *,
        seed: int = 0,
        workers: int = 2,
        worker_kind: WorkerKind = "threads",
        cache_bytes: int = 0,
        columns: Mapping[str, str] | None = None,
        processes: Processes = SINGLE_PROCESS,
        prepared: Mapping[str, Mapping[int, Inputs]] | None = None,
        never_empty: bool = False,
        views: Mapping[str, str] | None = None,
    ):
        self.data, self.preprocess, self.augment = data, dict(preprocess), dict(augment)
        self.prepared = dict(prepared or {})
        self.seed, self.cache = seed, ItemCache(cache_bytes // workers if worker_kind == "processes" else cache_bytes)
        self.pool = WorkerPool(self.batch, workers, worker_kind, pin_memory=torch.cuda.is_available())
        self.processes, self.never_empty, self.views = processes, never_empty, dict(views or {})
        self.input_size = {m: decoded_size(p, self.augment.get(m)) for m, p in self.preprocess.items()}
        self.columns = {name: _numeric_column(data, name, key) for name, key in (columns or {}).items()}

    def epoch(
        self,
        epoch: int,
        batches: Sequence[np.ndarray],
        hard_negatives: Callable[[np.ndarray], Mapping[str, np.ndarray] | None] | None = None,
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch in order. The workers prepare batches ahead.

        epoch: epoch number, a part of the random seed of augmentation
        batches: arrays of row numbers
        hard_negatives: function from the row numbers of a batch to the negatives mined for it. The result maps a direction to
            int64 [2, n]: positions in the batch (first row) and the row numbers of the negatives mined for them (second row).
            The negatives are added to the batch, only as candidates
        """
        return self.pool.map((rows, epoch, hard_negatives(rows) if hard_negatives else None) for rows in batches)

    def close(self) -> None:
        """End the worker processes; afterwards `epoch` starts others."""
        self.pool.close()

    def batch(self, rows: np.ndarray, epoch: int, hard_negatives: Mapping[str, np.ndarray] | None = None) -> Batch:
        """Prepare one batch: first `rows`, then the mined negatives, with is_query False; parameters as in `epoch`.

        Of a mined negative only the candidate modality of its direction is read and encoded.
        """
        n_queries, only, hard, parts = len(rows), [""] * len(rows), {}, [rows]
        for direction, (position, mined) in (hard_negatives or {}).items():
            unique, inverse = np.unique(mined, return_inverse=True)
            hard[direction] = torch.from_numpy(np.stack([position, len(only) + inverse]))
            only += [direction.partition("->")[2]] * len(unique)
            parts.append(unique)
        rows, only_modality, times = np.concatenate(parts), np.array(only), LoadTimes()
        inputs: dict[str, Inputs] = {}
        item_of_row: dict[str, Tensor] = {}
        for m in self.preprocess:
            present = np.flatnonzero(self.data.present[m][rows] & ((only_modality == "") | (only_modality == m)))
            items = np.full(len(rows), -1, np.int64)
            if len(present):
                first, items[present] = first_occurrences(self.data.labels[m][rows[present]])
                inputs |= self._local_inputs(m, rows[present[first]], epoch, times)
            item_of_row[m] = torch.from_numpy(items)
            if m in self.views:
                in_queries = int(items[:n_queries].max(initial=-1)) + 1  # items are numbered by first occurrence, queries first
                if in_queries:
                    number = int(self.views[m] == "augmentation")
                    inputs |= self._local_inputs(m, rows[present[first[:in_queries]]], epoch, times, number, second_view(m))
                items = np.where(np.arange(len(rows)) < n_queries, items, -1)
                item_of_row[second_view(m)] = torch.from_numpy(items)
        return Batch(
            ids=self.data.ids.take(rows),
            index=torch.from_numpy(rows.astype(np.int64)),
            is_query=torch.arange(len(rows)) < n_queries,
            inputs=inputs,
            item_of_row=item_of_row,
            labels={k: torch.from_numpy(v[rows]) for k, v in self.data.labels.items()},
            columns={k: torch.from_numpy(v[rows]) for k, v in self.columns.items()},
            hard_negatives=hard,
            times=times,
        )

    def _local_inputs(
        self, modality: str, rows: np.ndarray, epoch: int, times: LoadTimes, view: int = 0, key: str | None = None
    ) -> dict[str, Inputs]:
        """Prepare this rank's part of the unique items of one modality.

        rows: one row number for each unique item of the batch
        times: gets what was done
        view: number of the draw of the augmentation

        Returns {key, by default the modality: inputs}, or {} if this rank has no items.
        """
        local = rows[self.processes.local_slice(len(rows))]
        if self.never_empty and not len(local):
            local = rows[-1:]
        if not len(local):
            return {}
        begin = time.perf_counter()
        before = times.read + times.decode
        items = [self._item(modality, int(row), epoch, times, view) for row in local]
        collated = {key or modality: self.preprocess[modality].collate(items)}
        times.preprocess += time.perf_counter() - begin - (times.read + times.decode - before)
        times.values += len(local)
        return collated

    def _item(self, modality: str, row: int, epoch: int, times: LoadTimes, view: int = 0) -> Inputs:
        """Prepare the inputs of one row's value. The part of the work that gives the same result in every epoch is cached."""
        preprocess, augment = self.preprocess[modality], self.augment.get(modality)
        label = int(self.data.labels[modality][row])
        if modality in self.prepared:
            if label not in self.prepared[modality]:
                raise DataError(f"{self.data.spec}: row {self.data.ids[row]!r} changed while training; train again")
            return self.prepared[modality][label]
        is_deterministic = getattr(preprocess, "is_deterministic", None)  # None means that preprocessing is deterministic

        def make() -> Signal | Inputs:
            times.cached -= 1
            signal = decode_row(self.data, row, modality, self.input_size[modality], times)
            same = augment is None and (is_deterministic is None or is_deterministic(signal))
            return preprocess(signal) if same else signal

        times.cached += 1
        item = self.cache.get((modality, label), make)
        if isinstance(item, dict):
            return item
        draw = (self.seed, epoch, label, int(self.data.labels["id"][row]))
        rng = random.Random(hash((*draw, view) if view else draw))
        return preprocess(augment(item, rng) if augment else item, rng)


def decoded_size(preprocess: Preprocess, augment: "Augmentation | None") -> float | None:
    """The size at which signals must be decoded for training; None means full resolution.

    Reduced resolution is used in training only. For embedding, signals are decoded at full resolution, so that the embeddings are
    exactly those of the upstream preprocessing.
    """
    input_size = getattr(preprocess, "input_size", None)
    needed = input_size * getattr(augment, "zoom", 1.0) if input_size else math.inf
    return needed if math.isfinite(needed) else None


def _numeric_column(data: WeightedConcat, name: str, key: str) -> np.ndarray:
    """Read a metadata column as float32 [N], with NaN for rows without a value.

    Raises DataError, which names the recipe key, if the column does not exist or contains a value that is not a number.
    """
    out = np.full(len(data), np.nan, np.float32)
    try:
        values = data.column(name)
    except DataError as e:
        raise DataError(f"{key}: {e}") from None
    where = f"{key}: {data.spec}"
    for i, value in enumerate(values):
        out[i] = number_of(value, name, where, data.ids[i])
    return out
