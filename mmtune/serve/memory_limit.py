"""Limit the memory for decoded values. A small file can decode to a very large image, and many can arrive at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class MemoryLimit:
    """A budget of `limit` bytes that requests reserve and release. It can be used on one event loop only."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Context manager that waits until `size` bytes are free, and reserves them until the end of the block.

        If `size` exceeds the limit, the whole limit is reserved.
        """
        size = min(size, self.limit)
        async with self._changed:
            await self._changed.wait_for(lambda: self.used + size <= self.limit)
            self.used += size
        try:
            yield
        finally:
            self.used -= size
            async with self._changed:
                self._changed.notify_all()
