"""Micro-batches: values that arrive within a few milliseconds share one forward pass.

A thread of its own takes what waits, runs it, and takes what has gathered meanwhile: under load a batch fills while the one
before runs, and only an idle server waits for `window`. One pass at a time, so that passes never fight over cores.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

Run = Callable[[Any, list[Any]], Any]
"""(key, values) -> one result a value, in their order."""


class Batcher:
    """`submit(key, value)` gives a future of that value's own result, or of its own error.

    Values of one key (of one version and modality) share a pass; keys take turns, oldest first. A pass that raises is run again
    value by value, so that an error reaches only the request that caused it. observe(size, seconds) is told every pass.
    `expected`, where set, tells how many may come at all: nobody waits for others when there are none.
    """

    def __init__(self, run: Run, window: float = 0.004, most: int = 32, observe: Callable[[int, float], None] | None = None):
        self.run, self.window, self.most, self.observe = run, window, max(1, most), observe
        self.expected: Callable[[], int] = lambda: self.most
        self._waiting: OrderedDict[Hashable, deque[tuple[Any, Future[Any]]]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, key: Hashable, value: Any) -> "Future[Any]":
        """Queue one value. RuntimeError once closed."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the server is stopping")
            self._waiting.setdefault(key, deque()).append((value, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _take(self) -> tuple[Hashable, list[tuple[Any, "Future[Any]"]]] | None:
        """The next batch; None when closed and empty."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            key, queue = next(iter(self._waiting.items()))
            end = time.monotonic() + self.window
            while len(queue) < min(self.most, self.expected()) and not self._closed and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            batch = [queue.popleft() for _ in range(min(len(queue), self.most))]
            del self._waiting[key]
            if queue:
                self._waiting[key] = queue  # what is left goes behind the other keys
        return key, batch

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            key, batch = taken
            batch = [(v, f) for v, f in batch if f.set_running_or_notify_cancel()]
            if batch:
                begin = time.perf_counter()
                self._answer(key, batch)
                if self.observe:
                    self.observe(len(batch), time.perf_counter() - begin)

    def _answer(self, key: Hashable, batch: list[tuple[Any, "Future[Any]"]]) -> None:
        try:
            results = self.run(key, [v for v, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results of {len(batch)} values")
        except Exception as e:
            if len(batch) == 1:
                batch[0][1].set_exception(e)
            else:
                for one in batch:
                    self._answer(key, [one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
