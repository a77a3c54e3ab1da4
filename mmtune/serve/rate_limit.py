"""Token buckets by key, to limit requests by token and by address."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

MAX_KEYS = 20_000
"""Most keys that are remembered; the key that was used longest ago is forgotten first."""


class RateLimiter:
    """A token bucket for each key. It must be used on one thread.

    rate: requests a second; 0 or less means no limit
    burst: requests that a key may send at once after a pause
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self.clock = rate, max(1.0, burst), clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def wait(self, key: Hashable) -> float:
        """Return the seconds until the key may send a request; 0 means now. Nothing is counted."""
        if self.rate <= 0:
            return 0.0
        return max(0.0, (1.0 - self._level(key)) / self.rate)

    def take(self, key: Hashable) -> float:
        """Count one request of the key. Returns 0 if it is within the limit, else the seconds after which to try again."""
        if self.rate <= 0:
            return 0.0
        level = self._level(key)
        if level < 1.0:
            return (1.0 - level) / self.rate
        self._buckets[key] = (level - 1.0, self.clock())
        self._buckets.move_to_end(key)
        while len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)
        return 0.0

    def _level(self, key: Hashable) -> float:
        level, at = self._buckets.get(key, (self.burst, 0.0))
        return level if key not in self._buckets else min(self.burst, level + (self.clock() - at) * self.rate)
