"""Progress of long work on standard error: a rich bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

EVERY = 15.0


class Progress:
    """`with Progress("embed", total) as p: p.advance(n, note="recall 0.41")`. `quiet` shows nothing."""

    def __init__(self, what: str, total: int, unit: str = "rows", quiet: bool = False):
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.done, self.note, self.begin, self.last = 0, "", time.monotonic(), time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, note="")
        return self

    def advance(self, n: int, note: str = "") -> None:
        """`n` more are done; `note` stands beside the rate."""
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        rate = f"{self.done / max(now - self.begin, 1e-9):.1f} {self.unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=f"{rate}  {self.note}")
        elif not self.quiet and now - self.last >= EVERY:
            self.last = now
            print(f"{self.what}: {self.done}/{self.total} {rate} {self.note}".rstrip(), file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
