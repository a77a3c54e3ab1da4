"""The number of threads that training steps use on a CPU, by the recipe key `runtime.threads`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Literal

import torch

from mmtune.runtime.cpu_quota import local_cpus
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.thread_search import ThreadSearch
from mmtune.training.slow_steps import SlowSteps

ASK_EVERY = 16
"""With several processes and `auto`, rank 0 tells the number of threads after this many steps; during a search, after every step."""


class StepThreads:
    """Sets the number of threads of training steps. Steps on a GPU are left alone.

    setting: a number, "auto" (`ThreadSearch`), or None: what OMP_NUM_THREADS says, else one for each CPU that this process may use
    processes: with "auto", all ranks use the number that rank 0 has measured
    quiet: print nothing
    """

    def __init__(
        self, setting: int | Literal["auto"] | None = None, processes: Processes = SINGLE_PROCESS, quiet: bool = False
    ):
        self.setting, self.processes = setting, processes
        self.quiet = quiet or not processes.is_main_process
        self.search: ThreadSearch | None = None
        self.is_active, self._is_told_each_step = False, True
        self._steps = 0
        self._slow = SlowSteps()

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Context manager for the steps of a run; at its end, the number of threads is what it was before."""
        before = torch.get_num_threads()
        self.is_active = device.type == "cpu"
        try:
            if self.is_active:
                self._start(before)
            yield
        finally:
            self.is_active = False
            torch.set_num_threads(before)

    def _start(self, before: int) -> None:
        if self.setting == "auto":
            self.search = ThreadSearch(int(self.processes.broadcast(local_cpus())))
            self._set(self.search.threads)
        elif self.setting is not None:
            self._set(self.setting)
        elif "OMP_NUM_THREADS" not in os.environ:
            self._set(min(before, local_cpus()))  # torch does not know the CPU quota of a container
        self._steps = 0
        self._slow.begin()

    @property
    def logged(self) -> int | None:
        """The number of threads of the current step, if it may change during the run."""
        return torch.get_num_threads() if self.search and self.is_active else None

    def after_step(self, pairs: int, seconds: float) -> None:
        """Count a step on `pairs` that took `seconds`, without those spent waiting for data. A collective with "auto"."""
        if not self.is_active:
            return
        self._steps += 1
        if self.search is None:
            if not self.quiet and (line := self._slow.record(pairs, seconds, torch.get_num_threads())):
                self._print(line)
            return
        was_searching = self.search.is_searching
        if self.search.record(pairs, seconds):
            rates = ", ".join(f"{n}: {self.search.rates[n]:,.1f}" for n in sorted(self.search.rates))
            self._print(f"runtime.threads: {self.search.threads} from now on (pairs/s by number of threads: {rates})")
        elif self.search.is_searching and not was_searching:
            self._print("runtime.threads: measured again")
        if self.processes.is_single:
            self._set(self.search.threads)
        elif self._is_told_each_step or self._steps % ASK_EVERY == 0:
            threads, self._is_told_each_step = self.processes.broadcast([self.search.threads, self.search.is_searching])
            self._set(threads)

    def _set(self, threads: int) -> None:
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def _print(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)
