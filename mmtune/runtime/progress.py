"""Progress display on standard error: a progress bar (rich) on a terminal, otherwise one line every 15 seconds."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS = 15.0
"""Seconds between two progress lines when standard error is not a terminal."""


class Progress:
    """Context manager that shows progress: `with Progress("embed", total) as p: p.advance(n, note="recall 0.41")`.

    label: name of the work, shown in front
    total: number of units to do; 0: not known, so neither a total nor the remaining time is shown
    unit: name of what is counted, shown in the rate ("12.5 rows/s")
    quiet: show nothing
    initial: number of units that an earlier run has done; they do not count in the rate
    """

    def __init__(self, label: str, total: int, unit: str = "rows", quiet: bool = False, initial: int = 0):
        self.label, self.total, self.unit, self.quiet = label, total, unit, quiet
        self.initial = self.done = initial
        self.note = ""
        self._start = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = RichProgress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total or None, completed=self.done, note="")
        return self

    def advance(self, n: int, note: str = "") -> None:
        """Count `n` more units as done. `note` is shown beside the rate until another note replaces it."""
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        per_second = (self.done - self.initial) / max(now - self._start, 1e-9)
        rate = f"{per_second:.1f} {self.unit}/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=f"{rate}  {self.note}")
        elif not self.quiet and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            left = (
                f"{_duration((self.total - self.done) / per_second)} left" if self.done < self.total and per_second > 0 else ""
            )
            done = f"{self.done}/{self.total}" if self.total else f"{self.done}"
            parts = (f"{self.label}: {done}", rate, left, self.note)
            print(*(p for p in parts if p), file=sys.stderr, flush=True)

    def print(self, line: str) -> None:
        """Print a line on standard error, above the progress bar if there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    """A duration as text: 45s, 12m 05s or 3h 07m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
