"""Threads beside a model: how many OpenMP threads a data thread uses, and how OpenMP threads wait.

By default torch starts a team of OpenMP threads for each operation of every data thread, which takes longer than the operation
itself: 4.4 instead of 1.4 ms for the log-mel spectrogram of one second.
"""

import contextlib
import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def set_openmp_wait_policy() -> None:
    """Let waiting OpenMP threads sleep after a tenth of a millisecond, unless the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT.

    Changes environment variables, so only the command line and `train` call it. libgomp reads them when torch is imported:
    afterwards it has no effect. By default libgomp's threads spin for milliseconds; with shared cores that made a training step
    ten times longer, and sleeping at once a tenth longer. A tenth of a millisecond made it 3% shorter than a fifth of that on two
    idle cores and 3% longer beside two other programs.
    """
    if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


@functools.cache
def _libtorch() -> ctypes.CDLL | None:
    """libtorch_cpu, which exports the functions of OpenMP and MKL; None where there is no such file."""
    import torch

    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    return None


def use_one_thread() -> None:
    """Run this thread's torch operations in one thread from now on; those of other threads are unchanged.

    `torch.set_num_threads` would change MKL's number for all threads.
    """
    import torch

    torch.get_num_threads()  # torch sets a new thread's number at its first use: here, so that it does not undo the next lines
    for name in ("omp_set_num_threads", "MKL_Set_Num_Threads_Local"):
        function = getattr(_libtorch(), name, None)
        if function is not None:
            function(1)


def data_thread_pool(workers: int) -> ThreadPoolExecutor:
    """A pool of `workers` threads for loading and preprocessing, each of which runs torch operations in one thread."""
    return ThreadPoolExecutor(workers, thread_name_prefix="mmtune-data", initializer=use_one_thread)
