"""Search for the number of threads with which a repeated step is fastest, by timing real steps."""

from collections import deque
from collections.abc import Iterator

WARM_UP, MEASURED = 1, 2
"""Steps in one visit of a number of threads: the first ones are not measured, because libraries prepare their kernels for it."""
VISITS = 2
"""How often every number of threads is visited. Programs that start or end during the search then matter less."""
HOPELESS = 0.6
"""A number of threads that reaches less than this share of the best rate is not visited again."""
WINDOW = 8
"""Steps over which the rate after the search is measured."""
FAR_SLOWER = 1.5
"""The search is repeated when the steps of a window take this many times as long as those of the fastest window."""
REPEAT_AFTER = 500
"""The search is also repeated after this many steps, because other programs may have ended."""


class ThreadSearch:
    """Finds the best number of threads from 1 to `maximum`. Usage: run a step with `threads`, call `record`, repeat.

    It tries 1, 2, 4, ... and `maximum`, then numbers between the best and its neighbours. Afterwards `threads` stays the best one
    until the steps become far slower (FAR_SLOWER), or REPEAT_AFTER steps are done.

    threads: number of threads for the next step
    rates: number of threads -> units per second in the last search
    is_searching: whether a search is running
    """

    def __init__(self, maximum: int):
        self.maximum = maximum
        self._begin()

    def _begin(self) -> None:
        self.rates: dict[int, float] = {}
        self.is_searching = self.maximum > 1
        self.threads = self.maximum
        self._sums: dict[int, tuple[float, float]] = {}
        self._plan = self._steps()
        self._is_measured = False
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._best_rate, self._steps_since = 0.0, 0
        self._next()

    def record(self, units: float, seconds: float) -> bool:
        """Count a step of `units` (e.g. pairs) that took `seconds` with `threads`. Returns True if a search has just ended."""
        if self.is_searching:
            if self._is_measured:
                done, took = self._sums.get(self.threads, (0.0, 0.0))
                self._sums[self.threads] = done + units, took + seconds
                self.rates[self.threads] = (done + units) / max(took + seconds, 1e-9)
            self._next()
            return not self.is_searching
        self._watch(units, seconds)
        return False

    def _watch(self, units: float, seconds: float) -> None:
        """Start a new search if steps have become far slower, or if the last one was long ago."""
        self._steps_since += 1
        self._window.append((units, seconds))
        if self.maximum == 1 or len(self._window) < WINDOW:
            return
        rate = sum(u for u, _ in self._window) / max(sum(s for _, s in self._window), 1e-9)
        self._best_rate = max(self._best_rate, rate)
        if rate * FAR_SLOWER < self._best_rate or self._steps_since >= REPEAT_AFTER:
            self._begin()

    def _next(self) -> None:
        """Take the next step of the plan; at its end, keep the best number of threads."""
        step = next(self._plan, None) if self.is_searching else None
        if step is not None:
            self.threads, self._is_measured = step
        elif self.is_searching:
            self.threads, self.is_searching = self._best(), False

    def _best(self) -> int:
        return max(self.rates, key=lambda n: (self.rates[n], -n))

    def _steps(self) -> Iterator[tuple[int, bool]]:
        """Yield (number of threads, whether the step is measured), one for each step of a search."""
        counts = sorted({self.maximum, *(1 << k for k in range(self.maximum.bit_length()) if 1 << k <= self.maximum)})
        for n in reversed(counts):
            yield from self._visit(n)
        at = counts.index(self._best())
        around = counts[max(0, at - 1) : at + 2]
        between = {(a + b) // 2 for a, b in zip(around, around[1:], strict=False)} - set(counts)
        for n in sorted(between):
            yield from self._visit(n)
        for _ in range(VISITS - 1):
            for n in sorted(self.rates):
                if self.rates[n] >= HOPELESS * self.rates[self._best()]:
                    yield from self._visit(n)

    def _visit(self, n: int) -> Iterator[tuple[int, bool]]:
        for k in range(WARM_UP + MEASURED):
            yield n, k >= WARM_UP
