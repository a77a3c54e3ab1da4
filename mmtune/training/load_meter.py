"""What the progress of training shows beside the speed: waiting, bytes read and decoded per second, and cache hits."""

import time
from collections import deque

from mmtune.contracts import LoadTimes
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.training.checkpoint import TrainerState

SECONDS = 30.0
"""Bytes per second and cache hits are those of the last half minute."""


class LoadMeter:
    """Sums up what the loader did for the batches of the last SECONDS.

    shards: the cache of streamed shards on disk; None for other data
    """

    def __init__(self, shards: ShardCache | None = None) -> None:
        self.shards = shards
        self._recent: deque[tuple[float, LoadTimes]] = deque()

    def add(self, times: LoadTimes) -> None:
        """Count a batch."""
        now = time.monotonic()
        self._recent.append((now, times))
        while self._recent[0][0] < now - SECONDS:
            self._recent.popleft()

    def note(self, state: TrainerState, loss: float) -> str:
        """The note of the progress display after a step."""
        seconds = time.monotonic() - self._recent[0][0] if len(self._recent) > 1 else 0.0
        total = LoadTimes()
        for _, times in self._recent:
            total.add(times)
        # the first batch was read before the time that is counted
        size = total.size - self._recent[0][1].size if self._recent else 0
        read = f" reading {size / 1e6 / seconds:.1f} MB/s" if seconds and size else ""
        # by the time of the threads that decode, not by the clock: what one of them can do
        decoded = f" decoding {total.size / 1e6 / total.decode:.1f} MB/s a thread" if total.size and total.decode else ""
        hits = f" cache hits {total.cached / total.values:.0%}" if total.values and total.cached else ""
        if self.shards is not None and self.shards.hits:
            hits += f" shards from disk {self.shards.hits / (self.shards.hits + self.shards.misses):.0%}"
        return f"epoch {state.epoch + 1} loss {loss:.3f} waiting {state.wait_share:.0%}{read}{decoded}{hits}"
