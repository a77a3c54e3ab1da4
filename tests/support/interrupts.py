"""Ctrl-C at an exact point: a KeyboardInterrupt before the n-th bytecode instruction that runs in some source files."""

import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType


def interrupted_at_every_point(work: Callable[[], object], modules: list[ModuleType]) -> Iterator[int]:
    """Call `work` again and again, interrupted before its first, second, ... instruction in `modules`, until it runs through.

    Yields the point after each interrupted call, when the exception and its frames are gone.
    """
    files = {m.__file__ for m in modules}
    point = 0
    while True:
        point += 1
        if not _interrupted(work, files, point):
            return
        yield point


def _interrupted(work: Callable[[], object], files: set[str | None], point: int) -> bool:
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal passed
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == point:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return passed >= point
