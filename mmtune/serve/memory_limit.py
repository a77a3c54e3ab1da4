"""What is decoded at once takes no more memory than this: a small file may hold a very large picture, and many may come."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Budget:
    """Bytes that may be held at once. On one event loop only."""

    def __init__(self, most: int):
        self.most, self.used = most, 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Wait until `size` bytes are free (all of them, where it is more than there are), and give them back in the end."""
        size = min(size, self.most)
        async with self._changed:
            await self._changed.wait_for(lambda: self.used + size <= self.most)
            self.used += size
        try:
            yield
        finally:
            self.used -= size
            async with self._changed:
                self._changed.notify_all()
