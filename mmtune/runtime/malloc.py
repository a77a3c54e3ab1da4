"""Settings of glibc's allocator for training on a CPU.

By default glibc returns large freed blocks to the kernel and fetches them again page by page in the next step: 17,000 page
faults a step of 64 small images, 5% of its time.
"""

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
NO_TRIM = -1
DEFAULT_MMAP_THRESHOLD = 32 << 20  # the most that glibc's own dynamic threshold grows to
KEEP_ALL = 1 << 30
"""Threshold of `keep_freed_memory`: blocks of every size stay with the process."""
KEEP_SMALL = 1 << 20
"""Threshold of `keep_freed_memory` for sharded weights: blocks of 1 MiB or more are returned at once."""


@contextlib.contextmanager
def keep_freed_memory(threshold: int = KEEP_ALL) -> Iterator[None]:
    """In the body, freed blocks below `threshold` bytes stay with the process for reuse; afterwards they are returned.

    Larger blocks are returned at once. Weights that are sharded over processes, and gathered and freed layer by layer, need
    the threshold KEEP_SMALL: small blocks that live between them would otherwise pin the holes, as much memory as all weights
    take. No effect where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mallopt(M_MMAP_THRESHOLD, threshold)
    mallopt(M_TRIM_THRESHOLD, NO_TRIM)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, DEFAULT_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2 * DEFAULT_MMAP_THRESHOLD)
        trim(0)
