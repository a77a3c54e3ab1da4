"""Graceful stop of a training run: Ctrl-C and SIGTERM ask for a checkpoint after the running step."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

SAME_CTRL_C_SECONDS = 5.0
"""Each of several processes gets the terminal's Ctrl-C and, right after it, the launcher's: within this time they are one."""

Handler = Callable[[int, FrameType | None], object] | int | None


class Stopped(Exception):
    """A run was stopped by Ctrl-C or SIGTERM; its checkpoint is saved."""


class StopSignals:
    """`with stop: ... if stop.requested: ...`. The first signal sets `requested`, the second raises KeyboardInterrupt.

    Only the main thread can handle signals; in another one this does nothing.
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
