"""Process blocks of queries on several threads, one core each, and return the results in order.

Running whole blocks on single threads is faster than spreading every operation over all threads: no operation waits for the
slowest core, and NumPy operations run in parallel too.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mmtune.search.faiss_library import faiss_installed, import_faiss

T = TypeVar("T")
R = TypeVar("R")


def worker_count(device: str = "cpu") -> int:
    """Number of threads to use: on a CPU as many as torch uses (OMP_NUM_THREADS), on an accelerator 1."""
    import torch

    return torch.get_num_threads() if device == "cpu" else 1


def ordered_map(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Same as `map(work, items)`, on `threads` threads. Computes at most two results per thread ahead of the consumer."""
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
