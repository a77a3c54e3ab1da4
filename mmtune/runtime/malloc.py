"""Memory that one step frees serves the next one: without this, glibc gives it back to the kernel and fetches it again, page by
page (17,000 page faults a step of 64 small pictures, a twentieth of its time)."""

import contextlib
import ctypes
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
NEVER, LARGE = -1, 1 << 30
COMES_AND_GOES = 1 << 20  # weights of a cut block: see `heap_kept`
USUAL = 32 << 20  # the most that glibc's own threshold grows to


@contextlib.contextmanager
def heap_kept(below: int = LARGE) -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards it is given back. Nothing happens where there is no glibc.

    Pieces of `below` bytes or more are given back at once. So should be the weights of blocks that are cut among processes,
    gathered and freed a block at a time: what lies between them pins the holes, as much as all weights take.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mallopt(MMAP_THRESHOLD, below)
    mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, USUAL)
        mallopt(TRIM_THRESHOLD, 2 * USUAL)
        trim(0)
