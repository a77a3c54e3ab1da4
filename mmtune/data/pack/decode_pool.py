"""A pool of worker processes that check the files of rows. It stays usable even if a file crashes its decoder.

If a worker process crashes, runs out of memory, or needs longer than `timeout` for a row, that row is rejected and the worker is
replaced. Workers are started as new processes, not forked, because a fork of a process with threads can hang. Rows are returned in
order, and results do not depend on the number of workers.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.pack.columns import PackRow
from mmtune.errors import DataError

BATCH_ROWS, BATCH_BYTES = 16, 8 << 20
"""Maximum number of rows in a batch for a worker, and number of bytes from which a batch is full."""
AHEAD_ROWS, AHEAD_BYTES = 4096, 256 << 20
"""Limits on the rows that are held in memory while an earlier row is still being checked: their number, and their total bytes."""
START_SECONDS = 60.0
"""Additional time limit for the start of a worker process, which imports the modalities."""


def _is_url(value: bytes | str) -> bool:
    return isinstance(value, str) and "://" in value


class DecodeWorker:
    """One worker process. `batch` holds the rows that were sent to it and not answered yet, oldest first."""

    def __init__(self, settings: bytes):
        parent_end, child_end = socket.socketpair()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mmtune.data.pack.decode_worker", str(child_end.fileno())]
        with child_end:
            null = subprocess.DEVNULL
            self.process = subprocess.Popen(
                command, stdin=null, stdout=null, stderr=null, env=env, pass_fds=[child_end.fileno()]
            )
        self.connection = Connection(parent_end.detach())
        self.batch: deque[PackRow] = deque()
        self.ready = False
        self.seconds = 0.0
        self.deadline = time.monotonic() + START_SECONDS
        self.connection.send_bytes(settings)

    def send(self, rows: list[PackRow], timeout: float) -> None:
        """Send the next batch of rows. Raises OSError if the process has ended; the rows are in `batch` even then."""
        self.batch.extend(rows)
        # URLs of a batch are fetched at the same time and share the bandwidth, so the first may take as long as all of them
        self.seconds = timeout * max(1, sum(any(_is_url(v) for v in row.values.values()) for row in rows))
        self.deadline = time.monotonic() + self.seconds + (0 if self.ready else START_SECONDS)
        request = [[[n, v if isinstance(v, str) else None] for n, v in row.values.items()] for row in rows]
        self.connection.send_bytes(json.dumps(request).encode())
        for data in (v for row in rows for v in row.values.values() if isinstance(v, bytes)):
            self.connection.send_bytes(data)

    def receive(self) -> None:
        """Receive one message from the worker: that it is ready, or the result of the oldest row in `batch`.

        Raises EOFError or OSError if the process has ended, and DataError if it could not load the modalities.
        """
        answer = json.loads(self.connection.recv_bytes())
        self.deadline = time.monotonic() + self.seconds
        if "fatal" in answer:
            raise DataError(
                f"worker processes cannot import the modalities ({answer['fatal']}); define them in a module that can be imported"
            )
        if "ready" in answer:
            self.ready = True
            return
        row = self.batch[0]
        if answer["reason"] is None:
            names = [n for n, v in row.values.items() if isinstance(v, str)]
            data = {n: self.connection.recv_bytes() for n in names}
            row.stamp = answer["stamp"]
            row.values.update(data)
            row.reencoded |= answer["reencoded"]
        else:
            name = answer["modality"]
            row.reason, row.file = f"{name}: {answer['reason']}", row.files.get(name, row.file)
        self.batch.popleft()

    def stop(self) -> int:
        """Kill the process if it is still running, and return its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class DecodePool:
    """A pool of worker processes that read and check rows; a context manager that ends the processes.

    workers: number of processes; at least one is used, so that no decoder runs in the parent process
    used: modalities to load in the workers
    options: modality -> its limits
    max_bytes: maximum size of one value
    timeout: time limit in seconds for checking one row
    """

    def __init__(self, workers: int, used: list[str], options: Mapping[str, JsonObject], max_bytes: int, timeout: float):
        settings = {"table": modalities.TABLE, "used": used, "options": options, "max_bytes": max_bytes}
        self.settings, self.timeout, self.size = json.dumps(settings).encode(), timeout, max(1, workers)
        self.workers: list[DecodeWorker] = []
        self.bytes_ahead = 0
        self._failed_starts = 0
        self._order: deque[PackRow] = deque()  # rows that were taken from the source and not yielded yet, in order
        self._again: deque[PackRow] = deque()  # rows of a worker that ended; they must be sent to another worker
        self._unanswered: set[int] = set()  # numbers of rows that are still to be checked

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()

    def check(self, rows: Iterable[PackRow]) -> Iterator[PackRow]:
        """Yield the rows in order, after their values were read and checked; rejected rows have a reason. Memory is bounded."""
        if os.name == "nt":
            raise DataError("pack needs Linux or macOS (its worker processes use POSIX sockets and limits); on Windows use WSL")
        source = iter(rows)
        while True:
            more = self._dispatch(source)
            while self._order and self._order[0].number not in self._unanswered:
                row = self._order.popleft()
                self.bytes_ahead -= row.held
                yield row
            if not more and not self._order:
                return
            if any(w.batch for w in self.workers):
                self._collect()

    def _dispatch(self, source: Iterator[PackRow]) -> bool:
        """Send batches to idle workers. Returns False when the source has no more rows, else True."""
        while True:
            if not self._again and (len(self._order) > AHEAD_ROWS or self.bytes_ahead > AHEAD_BYTES):
                return True
            worker = next((w for w in self.workers if not w.batch), None)
            if worker is None and len(self.workers) >= self.size:
                return True
            batch, more = self._next_batch(source)
            if batch:
                if worker is None:
                    self.workers.append(worker := DecodeWorker(self.settings))
                try:
                    worker.send(batch, self.timeout)
                except OSError:
                    self._replace(worker)
            if not more and not self._again:
                return False
            if not batch:
                return True  # only rows that need no check were taken: yield them first, to bound memory

    def _next_batch(self, source: Iterator[PackRow]) -> tuple[list[PackRow], bool]:
        """Take the next batch of rows to check from the source. Also returns whether there may be more rows.

        Rows that need no check are put into `_order` only.
        """
        batch: list[PackRow] = []
        size = 0
        for _ in range(AHEAD_ROWS):
            if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
                return batch, True
            if self._again:
                batch.append(self._again.popleft())
                continue
            row = next(source, None)
            if row is None:
                return batch, False
            self._order.append(row)
            if row.reason is None and not row.settled and not row.dropped:
                self._unanswered.add(row.number)
                batch.append(row)
                size += sum(len(v) for v in row.values.values() if isinstance(v, bytes))
        return batch, True

    def _collect(self) -> None:
        """Wait until at least one worker has sent a message or exceeded its time limit, and process what has arrived."""
        busy = {w.connection: w for w in self.workers if w.batch}
        first = min(w.deadline for w in busy.values())
        for connection in wait(list(busy), max(0.0, first - time.monotonic())):
            worker = busy[connection]  # type: ignore[index]  # `wait` returns some of the connections it was given
            try:
                row = worker.batch[0]
                worker.receive()
                if not worker.batch or worker.batch[0] is not row:
                    self._unanswered.discard(row.number)
                    row.held = sum(len(v) for v in row.values.values() if isinstance(v, bytes))
                    self.bytes_ahead += row.held
            except (EOFError, OSError):
                self._replace(worker)
        now = time.monotonic()
        for worker in [w for w in self.workers if w.batch and w.deadline < now and not w.connection.poll()]:
            self._replace(worker, f"takes longer than {self.timeout:g} s to decode (--timeout)")

    def _replace(self, worker: DecodeWorker, reason: str = "") -> None:
        """Stop a worker that has ended or hangs. Its current row is rejected; the rest of its batch is sent to another worker."""
        status = worker.stop()
        self.workers.remove(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > 3:
                raise DataError(
                    f"worker processes cannot start (exit status {status}); run `python -m mmtune.data.pack.decode_worker` to see why"
                )
        elif worker.batch:
            self._failed_starts = 0
            row = worker.batch.popleft()
            death = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            row.reason = f"{', '.join(row.values)}: {reason or f'crashes its decoder ({death})'}"
            self._unanswered.discard(row.number)
        self._again.extendleft(reversed(worker.batch))
