"""Micro-batches: what arrives within a few milliseconds is answered together.

Everything but the work itself happens on the event loop: requests wait as futures, one thread runs a batch and the loop hands
out its results at once, so that a request costs no thread of its own. Under load a batch fills while the one before runs; only
an idle server waits for `window`. One batch at a time: passes never fight over cores.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Run = Callable[[Any, list[Any]], Sequence[Any]]
"""(key, values) -> one result a value, in their order; an exception among them is its value's own."""


class Batcher:
    """`await submit(key, value)` gives that value's own result, or raises its own error. On one event loop only.

    Values of one key share a batch; keys take turns, oldest first. A batch that raises is run again value by value, so that an
    error reaches only the request that caused it. observe(size, seconds) is told every batch. `expected`, where set, tells how
    many may come at all: nobody waits for others when there are none.
    """

    def __init__(self, run: Run, window: float = 0.004, most: int = 32, observe: Callable[[int, float], None] | None = None):
        self.run, self.window, self.most, self.observe = run, window, max(1, most), observe
        self.expected: Callable[[], int] = lambda: self.most
        self._waiting: OrderedDict[Hashable, deque[tuple[Any, asyncio.Future[Any]]]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, key: Hashable, value: Any) -> Any:
        """The result of one value. RuntimeError once closed."""
        if self._closed:
            raise RuntimeError("the server is stopping")
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((value, future))
        self._more.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Answer what waits, then end."""
        self._closed = True
        self._more.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            key, queue = next(iter(self._waiting.items()))
            await self._gather(queue)
            batch = [queue.popleft() for _ in range(min(len(queue), self.most))]
            del self._waiting[key]
            if queue:
                self._waiting[key] = queue  # what is left goes behind the other keys
            batch = [(value, future) for value, future in batch if not future.done()]  # done: who asked has gone away
            if batch:
                results, seconds = await loop.run_in_executor(self._thread, self._timed, key, [v for v, _ in batch])
                if self.observe:
                    self.observe(len(batch), seconds)
                for (_, future), result in zip(batch, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, BaseException):
                        future.set_exception(result)
                    else:
                        future.set_result(result)

    async def _gather(self, queue: Sequence[Any]) -> None:
        """Wait for others, `window` at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.window
        while len(queue) < min(self.most, self.expected()) and not self._closed and (left := end - loop.time()) > 0:
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._more.wait()

    def _timed(self, key: Hashable, values: list[Any]) -> tuple[Sequence[Any], float]:
        begin = time.perf_counter()
        return self._answer(key, values), time.perf_counter() - begin

    def _answer(self, key: Hashable, values: list[Any]) -> Sequence[Any]:
        try:
            results = self.run(key, values)
            if len(results) != len(values):
                raise RuntimeError(f"{len(results)} results of {len(values)} values")
            return results
        except Exception as e:
            return [e] if len(values) == 1 else [self._answer(key, [value])[0] for value in values]
