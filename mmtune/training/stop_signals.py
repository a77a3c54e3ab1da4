"""Graceful stop of a training run. After Ctrl-C or SIGTERM, the run finishes its step, saves a checkpoint, and stops."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

SAME_CTRL_C_SECONDS = 5.0
"""Signals within this time count as one.

With several processes, each process receives Ctrl-C twice: from the terminal, and directly afterwards from the launcher.
"""

Handler = Callable[[int, FrameType | None], object] | int | None


class Stopped(Exception):
    """The run was stopped by Ctrl-C or SIGTERM. A checkpoint was saved."""


class StopSignals:
    """Context manager that records stop signals: `with stop: ... if stop.requested: ...`.

    The first signal sets `requested`, and the second raises KeyboardInterrupt. Python allows only the main thread to handle
    signals; in other threads this context manager does nothing.
    """

    def __init__(self, single_process: bool) -> None:
        self.single_process = single_process
        self.requested = False
        self._last = -SAME_CTRL_C_SECONDS
        self._before: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_new = self.single_process or time.monotonic() - self._last > SAME_CTRL_C_SECONDS
        if self.requested and is_new:
            raise KeyboardInterrupt
        self._last = time.monotonic()
        self.requested = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
        self._before = {}
