"""Dynamic batching: queries that arrive within a few milliseconds share one forward pass.

Requests wait as futures on the event loop, and one thread runs the batches, so a request needs no thread of its own. Under load
a batch fills while the one before it runs; only an idle server waits for `window`. There is one batch at a time, so that
forward passes do not compete for cores.
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
    """`await submit(key, value)` returns that value's own result, or raises its own error. On one event loop only.

    run(key, values): one result a value, in order; an exception among the results belongs to its value. Values of one key
    share a batch of at most `most`; keys take turns, the oldest first. A batch that raises is run again value by value, so that
    an error reaches only the request that caused it.
    window: seconds that an idle server waits for further values. observe(size, seconds) is called after every batch. expected():
    how many values may arrive at all; once that many wait, nobody waits longer.
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
        """The result of one value. RuntimeError once closed."""
        if self._closed:
            raise RuntimeError("the server is stopping")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((value, future))
        self._arrival.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_batches())
        return await future

    async def close(self) -> None:
        """Answer what waits, then stop."""
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
                self._waiting[key] = queue  # the rest goes behind the other keys
            batch = [(value, future) for value, future in batch if not future.done()]  # done: its caller has gone away
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
        """Wait until the batch is full or nobody else is expected, for `window` at most."""
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
                raise RuntimeError(f"{len(results)} results of {len(values)} values")
            return results
        except Exception as e:
            return [e] if len(values) == 1 else [self._results(key, [value])[0] for value in values]
