"""Settings of glibc's memory allocator that make training on a CPU faster.

By default glibc returns large freed blocks to the kernel, and the next training step fetches them again page by page. In a step
on 64 small images this caused 17,000 page faults and took 5% of the time.
"""

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameter numbers of mallopt, from malloc.h
NO_TRIM = -1  # value of M_TRIM_THRESHOLD that turns trimming off
DEFAULT_MMAP_THRESHOLD = 32 << 20  # the largest value that glibc's own dynamic threshold reaches
KEEP_ALL = 1 << 30
"""Threshold of `keep_freed_memory` in bytes: freed blocks below 1 GiB, in practice all, stay with the process."""
KEEP_SMALL = 1 << 20
"""Threshold of `keep_freed_memory` in bytes, for sharded weights: blocks of 1 MiB or more are returned to the kernel at once."""


@contextlib.contextmanager
def keep_freed_memory(threshold: int = KEEP_ALL) -> Iterator[None]:
    """Context manager that keeps freed blocks below `threshold` bytes in the process for reuse, and returns them at its end.

    Larger blocks are returned to the kernel at once. Use the threshold KEEP_SMALL when weights are sharded over processes
    (FSDP), where the weights of each layer are gathered and freed in turn. With KEEP_ALL, small long-lived blocks between the
    freed weights would fragment the heap, which would then hold as much memory as all unsharded weights. Without glibc the
    context manager has no effect.
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
