"""Blocks of queries in parallel, one core each, results in order.

Whole blocks on single threads beat every operation on all threads: no operation waits for the slowest core, and the parts in
NumPy run side by side too.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def workers(device: str = "cpu") -> int:
    """Threads to work with: those that torch may use (OMP_NUM_THREADS); one where an accelerator does the work."""
    import torch

    return torch.get_num_threads() if device == "cpu" else 1


def ordered(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map(work, items)` on `threads` threads, at most two results ahead of the consumer for each."""
    if threads <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="mmtune-mine", initializer=_alone) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _alone() -> None:
    from mmtune.runtime.threads import use_one_thread
    from mmtune.search.blocked import faiss_module

    use_one_thread()
    faiss_module().omp_set_num_threads(1)
