"""Blocks of queries on several threads, one core each, results in order.

Whole blocks on single threads are faster than every operation on all threads: no operation waits for the slowest core, and
the parts in NumPy run in parallel too.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mmtune.search.faiss_library import faiss_installed, import_faiss

T = TypeVar("T")
R = TypeVar("R")


def worker_count(device: str = "cpu") -> int:
    """Threads to work with: as many as torch may use (OMP_NUM_THREADS); one where an accelerator does the work."""
    import torch

    return torch.get_num_threads() if device == "cpu" else 1


def ordered_map(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map(work, items)` on `threads` threads, at most two results per thread ahead of the consumer."""
    if threads <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="mmtune-search", initializer=_single_threaded) as pool:
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


def _single_threaded() -> None:
    from mmtune.runtime.threads import use_one_thread

    use_one_thread()
    if faiss_installed():
        import_faiss().omp_set_num_threads(1)
