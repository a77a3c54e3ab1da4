"""Rows -> batches: decode, augment, preprocess and collate in threads ahead of the step; identical content once a batch.

Threads, not processes: Pillow, libsndfile, numpy and torch release the interpreter's lock, and one memory cache serves all.
"""

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import Batch, Preprocess
from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_seen
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.threads import data_thread_pool

AHEAD = 2


class Cache:
    """Items by (modality, content) in at most `limit` bytes; what no longer fits is made anew each time."""

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.items: dict[tuple[str, int], Any] = {}
        self.lock = threading.Lock()

    def get(self, key: tuple[str, int], make: Callable[[], Any]) -> Any:
        """The kept item, or a new one (kept if there is room)."""
        item = self.items.get(key)
        if item is None:
            item = make()
            size = _bytes(item)
            with self.lock:
                if key not in self.items and self.size + size <= self.limit:
                    self.items[key] = item
                    self.size += size
        return item


def _bytes(item: Any) -> int:
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

    preprocess: {modality: Preprocess} of the towers that are trained; augment: {modality: (signal, rng) -> signal}; columns:
    numeric metadata that the objective asks for -> the recipe key that does; prepared: modality -> content label -> item, for
    modalities whose items need no decoding (stored features of a frozen tower). Augmentation's randomness comes from (seed,
    epoch, row), whatever the threads.
    Of several `processes` each prepares its share of a batch's items; rows, slots and labels are the whole batch's. in_step:
    a process whose share of a modality is empty gets one item all the same (see `forward_backward`).
    """

    def __init__(
        self,
        data: WeightedConcat,
        preprocess: Mapping[str, Preprocess],
        augment: Mapping[str, Callable[[Any, random.Random], Any]],
        *,
        seed: int = 0,
        workers: int = 2,
        cache_bytes: int = 0,
        columns: Mapping[str, str] | None = None,
        processes: Processes = SINGLE_PROCESS,
        prepared: Mapping[str, Mapping[int, dict[str, Tensor]]] | None = None,
        in_step: bool = False,
    ):
        self.prepared = dict(prepared or {})
        self.data, self.preprocess, self.augment = data, dict(preprocess), dict(augment)
        self.seed, self.workers, self.cache = seed, workers, Cache(cache_bytes)
        self.processes, self.in_step = processes, in_step
        self.enough = {m: _enough(p, self.augment.get(m)) for m, p in self.preprocess.items()}
        self.columns = {name: _numbers(data, name, key) for name, key in (columns or {}).items()}

    def epoch(
        self,
        epoch: int,
        batches: Sequence[np.ndarray],
        extra: Callable[[np.ndarray], Mapping[str, np.ndarray] | None] | None = None,
    ) -> Iterator[Batch]:
        """The batches in order, prepared ahead. `extra(rows)` gives rows that join as candidates only (mined negatives):
        direction -> [2, n] places in `rows` and rows mined for them."""
        with data_thread_pool(self.workers) as pool:
            waiting: deque[Future[Batch]] = deque()
            source = iter(batches)
            try:
                for rows in source:
                    waiting.append(pool.submit(self.batch, rows, epoch, extra(rows) if extra else None))
                    if len(waiting) >= self.workers + AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def batch(self, rows: np.ndarray, epoch: int, extra: Mapping[str, np.ndarray] | None = None) -> Batch:
        """One batch of `rows`, then the `extra` rows with queries False; each of these brings the modality it was mined for,
        and nothing else is read or encoded of it."""
        asking, brings, hard, parts = len(rows), [""] * len(rows), {}, [rows]
        for name, (place, mined) in (extra or {}).items():
            unique, at = np.unique(mined, return_inverse=True)
            hard[name] = torch.from_numpy(np.stack([place, len(brings) + at]))
            brings += [name.partition("->")[2]] * len(unique)
            parts.append(unique)
        rows, carries = np.concatenate(parts), np.array(brings)
        inputs: dict[str, dict[str, Tensor]] = {}
        slots: dict[str, Tensor] = {}
        for m, preprocess in self.preprocess.items():
            here = np.flatnonzero(self.data.present[m][rows] & ((carries == "") | (carries == m)))
            slot = np.full(len(rows), -1, np.int64)
            if len(here):
                first, slot[here] = first_seen(self.data.labels[m][rows[here]])
                mine = rows[here[first[self.processes.local_slice(len(first))]]]
                if self.in_step and not len(mine):
                    mine = rows[here[first[-1:]]]
                if len(mine):
                    inputs[m] = preprocess.collate([self._item(m, int(row), epoch) for row in mine])
            slots[m] = torch.from_numpy(slot)
        asks = torch.arange(len(rows)) < asking
        labels = {k: torch.from_numpy(v[rows]) for k, v in self.data.labels.items()}
        columns = {k: torch.from_numpy(v[rows]) for k, v in self.columns.items()}
        ids = [self.data.ids[i] for i in rows]
        return Batch(ids, torch.from_numpy(rows.astype(np.int64)), asks, inputs, slots, labels, columns, hard)

    def _item(self, modality: str, row: int, epoch: int) -> dict[str, Tensor]:
        """Prepared tensors of one row's value; cached after the last step that is the same every epoch."""
        preprocess, augment = self.preprocess[modality], self.augment.get(modality)
        label = int(self.data.labels[modality][row])
        if modality in self.prepared:
            if label not in self.prepared[modality]:
                raise DataError(f"{self.data.spec}: row {self.data.ids[row]!r} changed while training; train again")
            return self.prepared[modality][label]
        fixed = getattr(preprocess, "is_deterministic", None)  # None: the same every time without augmentation

        def make() -> Any:
            signal = decode_row(self.data, row, modality, self.enough[modality])
            return preprocess(signal) if augment is None and (fixed is None or fixed(signal)) else signal

        key = (modality, label)
        item = self.cache.get(key, make)
        if isinstance(item, dict):
            return item
        rng = random.Random(hash((self.seed, epoch, key[1], int(self.data.labels["id"][row]))))
        return preprocess(augment(item, rng) if augment else item, rng)


def _enough(preprocess: Preprocess, augment: Any) -> float | None:
    """How much of a signal training needs; None: all of it. (What is embedded is always decoded whole, so that a vector is
    the one that upstream's own preprocessing gives.)"""
    enough = getattr(preprocess, "input_size", None)
    needed = enough * getattr(augment, "zoom", 1.0) if enough else math.inf
    return needed if math.isfinite(needed) else None


def _numbers(data: WeightedConcat, name: str, key: str) -> np.ndarray:
    """A metadata column as float32 [N]; NaN where a row has none. DataError names the recipe key that asks for it, and the
    first value that is no number."""
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
