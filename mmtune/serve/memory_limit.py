"""Limits the memory of decoded values: a small file may hold a very large picture, and many may arrive at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class MemoryLimit:
    """`limit` bytes that may be reserved at a time. On one event loop only."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Wait until `size` bytes are free (the whole limit, where `size` is larger) and hold them within the block."""
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
