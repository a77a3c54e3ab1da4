"""Dynamic batching: queries that arrive within a few milliseconds share one forward pass.

Requests wait as futures on the event loop, and one thread runs all batches, so that a waiting request needs no thread. While one
batch runs, the next one fills. Only an idle server waits for up to `window` seconds. Batches run one at a time, so that
forward passes do not compete for CPU cores.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Result = TypeVar("Result")


class Batcher(Generic[Key, Value, Result]):
    """Collects values into batches: `await submit(key, value)` returns the value's result or raises its error.

    It can be used on one event loop only. All values of a batch have the same key, and the key that has waited longest comes
    first. If a batch raises an error, its values are run again one by one, so that only the request that caused it fails.

    run: called as run(key, values); returns one result per value, in order. An exception in the list is raised for its value
    window: seconds that an idle server waits for more values
    most: maximum number of values in a batch
    observe: called as observe(size, seconds) after every batch, or None
    expected: attribute, function without arguments; returns the number of requests in progress. If as many values already
        wait, no more can arrive, and the batch starts
    """

    def __init__(
        self,
        run: Callable[[Key, list[Value]], Sequence[Result | Exception]],
        window: float = 0.004,
        most: int = 32,
        observe: Callable[[int, float], None] | None = None,
    ):
        self.run, self.window, self.most, self.observe = run, window, max(1, most), observe
        self.expected: Callable[[], int] = lambda: self.most
        self._waiting: OrderedDict[Key, deque[tuple[Value, asyncio.Future[Result]]]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, key: Key, value: Value) -> Result:
        """Return the result of one value. Raises RuntimeError if the batcher is closed."""
        if self._closed:
            raise RuntimeError("the server is stopping")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((value, future))
        self._arrival.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_batches())
        return await future

    async def close(self) -> None:
        """Run everything that waits, then stop."""
        self._closed = True
        self._arrival.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            key, queue = next(iter(self._waiting.items()))
            await self._wait_for_more(queue)
            batch = [queue.popleft() for _ in range(min(len(queue), self.most))]
            del self._waiting[key]
            if queue:
                self._waiting[key] = queue  # the remaining values go behind the other keys
            batch = [(value, future) for value, future in batch if not future.done()]  # done: the request was cancelled
            if not batch:
                continue
            results, seconds = await loop.run_in_executor(self._thread, self._timed, key, [value for value, _ in batch])
            if self.observe:
                self.observe(len(batch), seconds)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def _wait_for_more(self, queue: Sized) -> None:
        """Wait until the batch is full or no more values are expected, but at most `window` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.window
        while len(queue) < min(self.most, self.expected()) and not self._closed and (left := end - loop.time()) > 0:
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrival.wait()

    def _timed(self, key: Key, values: list[Value]) -> tuple[Sequence[Result | Exception], float]:
        begin = time.perf_counter()
        return self._results(key, values), time.perf_counter() - begin

    def _results(self, key: Key, values: list[Value]) -> Sequence[Result | Exception]:
        try:
            results = self.run(key, values)
            if len(results) != len(values):
                raise RuntimeError(f"the batch function returned {len(results)} results for {len(values)} values")
            return results
        except Exception as e:
            return [e] if len(values) == 1 else [self._results(key, [value])[0] for value in values]
