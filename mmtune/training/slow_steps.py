"""Notice that other programs take the CPUs that the threads of a training step need, and say what to set.

With OpenMP a single thread that waits for a CPU delays all others, so that a step with several threads can take ten times as long on a
busy machine, while one with fewer threads is hardly slower.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

WATCHED = 16
"""Steps after which the number of threads is judged for the first time."""
WINDOW = 8
"""Steps over which a rate is measured later."""
FAR_SLOWER = 2.0
"""Steps that take this many times as long as the fastest ones so far are far slower."""
STARVED = 0.5
"""Share of the time that threads of this process were ready to run but had no CPU, summed over them, from which the user is told."""
STARVED_AND_SLOW = 0.2
"""The same, if the steps have become far slower."""


class SlowSteps:
    """Watches the steps of a run that has a fixed number of threads. Usage: `begin`, then `record` each step.

    starved: returns the seconds that threads waited for a CPU so far; None if the system does not say
    """

    def __init__(self, starved: Callable[[], float | None] | None = None) -> None:
        self._starved = starved or starved_seconds
        self._steps, self._best = 0, 0.0
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._is_over = False

    def begin(self) -> None:
        """Start at the first step of a run."""
        self._start = self._last = self._mark()

    def record(self, units: float, seconds: float, threads: int) -> str | None:
        """Count a step of `units` (e.g. pairs) that took `seconds`. Returns a line for the user, at most two in a run.

        threads: number of threads of the step; with one there is nothing to set
        """
        if threads == 1 or self._is_over:
            return None
        self._steps += 1
        self._window.append((units, seconds))
        if self._steps % WINDOW == 0:
            return self._judge(threads)
        return None

    def _judge(self, threads: int) -> str | None:
        """Judge the last WINDOW steps. Called once for each window: reading the counters of all threads takes time."""
        mark = self._mark()
        rate = sum(u for u, _ in self._window) / max(sum(s for _, s in self._window), 1e-9)
        since_start, since_last = _share(self._start, mark), _share(self._last, mark)
        self._last = mark
        self._best = max(self._best, rate)
        if rate * FAR_SLOWER < self._best and (since_last is None or since_last > STARVED_AND_SLOW):
            self._is_over = True
            why = (
                "other programs may be running"
                if since_last is None
                else f"they wait for a free CPU ({since_last:.0%} of the time)"
            )
            return (
                f"runtime.threads: steps with {threads} threads take {self._best / max(rate, 1e-9):.1f} times as long as the fastest ones so far "
                f"({rate:,.1f} pairs/s, then {self._best:,.1f}); {why}. Stop the run, and continue it with --resume runtime.threads=auto, "
                "which measures whether fewer are faster, or runtime.threads=1"
            )
        if self._steps == WATCHED and since_start is not None and since_start > STARVED:
            return (
                f"runtime.threads: the {threads} threads of a step wait for a free CPU ({since_start:.0%} of the time, summed over "
                "threads); runtime.threads=auto measures whether fewer are faster"
            )
        return None

    def _mark(self) -> tuple[float, float | None]:
        return time.monotonic(), self._starved()


def _share(begin: tuple[float, float | None], end: tuple[float, float | None]) -> float | None:
    """Seconds of waiting per second between two marks; None if the system does not say."""
    if begin[1] is None or end[1] is None:
        return None
    return (end[1] - begin[1]) / max(end[0] - begin[0], 1e-9)


def starved_seconds(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds that the threads of this process were ready to run, but had no CPU, summed over them; None if the system does not say."""
    total, is_known = 0, False
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # a thread may end meanwhile
                total += int((task / "schedstat").read_text().split()[1])
                is_known = True
    return total / 1e9 if is_known else None
