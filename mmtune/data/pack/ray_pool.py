"""Check the rows of `mmtune pack` on a Ray cluster (`--engine ray`), with the interface of `DecodePool`.

Each Ray task checks a batch of rows by a `DecodePool` of one worker process, which its Ray process keeps: a file that crashes its
decoder, or takes too long, costs its row there as it does here. Ray repeats the tasks of a node that dies. The shards are written
by this process, in the order of the source, so they are those of `--engine here`, and a pack that was interrupted under one engine
is resumed under the other.
"""

import contextlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType

from mmtune.contracts import JsonObject
from mmtune.data.pack.columns import PackRow
from mmtune.data.pack.decode_pool import BATCH_BYTES, BATCH_ROWS, DecodePool
from mmtune.errors import DataError
from mmtune.runtime.ray_cluster import RayCluster, in_directory, ray_cluster

AHEAD = 2
"""Batches that are submitted ahead for each worker."""
RETRIES = 3
"""How often Ray repeats a batch whose node died."""
_pools: dict[str, DecodePool] = {}
"""In a Ray process: the pool for the settings (as JSON) of the pack that it works for."""


def check_rows(settings: str, rows: list[PackRow]) -> list[PackRow]:
    """The Ray task: read and check a batch of rows. `settings` are the arguments of `DecodePool`, as JSON."""
    if settings not in _pools:
        while _pools:  # of an earlier pack on the same cluster
            _pools.popitem()[1].__exit__(None, None, None)
        _pools[settings] = DecodePool(**json.loads(settings))
    try:
        return list(_pools[settings].check(rows))
    except BaseException:
        _pools.pop(settings).__exit__(None, None, None)
        raise


class RayDecodePool:
    """Reads and checks rows on a Ray cluster. A context manager: it connects, and starts a cluster here if RAY_ADDRESS is not set.

    workers: number of batches that are checked at the same time; 0 means one per CPU core of the cluster
    used, options, max_bytes, timeout: as for `DecodePool`
    """

    def __init__(self, workers: int, used: list[str], options: Mapping[str, JsonObject], max_bytes: int, timeout: float):
        self._asked, self._stack = workers, contextlib.ExitStack()
        arguments = {"workers": 1, "used": used, "options": options, "max_bytes": max_bytes, "timeout": timeout}
        self._settings = json.dumps(arguments)
        self._cluster: RayCluster | None = None

    def __enter__(self) -> "RayDecodePool":
        self._cluster = self._stack.enter_context(ray_cluster())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def check(self, rows: Iterable[PackRow]) -> Iterator[PackRow]:
        """Yield the rows in order, after their values were read and checked; rejected rows have a reason."""
        assert self._cluster is not None, "use the pool as a context manager"
        task = self._cluster.ray.remote(num_cpus=1, max_retries=RETRIES)(in_directory(check_rows))
        ahead = AHEAD * (self._asked or self._cluster.cpus)
        waiting: deque[tuple[list[PackRow], object | None]] = deque()
        for batch in _batches(rows):
            todo = [row for row in batch if _needs_check(row)]
            waiting.append((batch, task.remote(self._settings, todo) if todo else None))
            if len(waiting) > ahead:
                yield from self._take(*waiting.popleft())
        while waiting:
            yield from self._take(*waiting.popleft())

    def _take(self, batch: list[PackRow], reference: object | None) -> list[PackRow]:
        """Wait for a batch, and put what its task found into the rows."""
        assert self._cluster is not None
        if reference is None:
            return batch
        try:
            checked = self._cluster.result(reference)
        except self._cluster.ray.exceptions.RayTaskError:
            raise
        except self._cluster.ray.exceptions.RayError as e:
            rows = f"rows {batch[0].source_row} to {batch[-1].source_row}"
            raise DataError(
                f"{rows}: the Ray workers that checked them died {RETRIES + 1} times ({type(e).__name__}); "
                "run the same command again, it continues"
            ) from None
        assert isinstance(checked, list)
        of_number = {row.number: row for row in checked}
        for row in batch:
            if row.number in of_number:
                vars(row).update(vars(of_number[row.number]))
        return batch


def _needs_check(row: PackRow) -> bool:
    return row.reason is None and not row.settled and not row.dropped


def _batches(rows: Iterable[PackRow]) -> Iterator[list[PackRow]]:
    """Divide rows into batches as `DecodePool` does; rows that need no check count, too."""
    batch: list[PackRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(v) for v in row.values.values() if isinstance(v, bytes))
        if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
