"""The parent side of checking: jobs out to child processes, results back in order, whatever a file does to its decoder.

A child that crashes, is killed for its memory, or takes longer than `timeout` over a row costs that row and is replaced.
Children are fresh processes, not forks: a fork of a process with threads can hang. Results do not depend on their number.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from mmtune import modalities
from mmtune.data.pack.columns import Job
from mmtune.errors import DataError

BATCH_ROWS, BATCH_BYTES = 16, 8 << 20
AHEAD_ROWS, AHEAD_BYTES = 4096, 256 << 20
"""How far results may run ahead of the oldest row that is not done."""
START_SECONDS = 60.0


class Child:
    """One checking process; `batch` is what it has been given and not answered, oldest first."""

    def __init__(self, settings: bytes):
        ours, theirs = socket.socketpair()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mmtune.data.pack.decode_worker", str(theirs.fileno())]
        with theirs:
            none = subprocess.DEVNULL
            self.process = subprocess.Popen(command, stdin=none, stdout=none, stderr=none, env=env, pass_fds=[theirs.fileno()])
        self.wire = Connection(ours.detach())
        self.batch: deque[Job] = deque()
        self.ready = False
        self.deadline = time.monotonic() + START_SECONDS
        self.wire.send_bytes(settings)

    def send(self, jobs: list[Job], timeout: float) -> None:
        """Give the child its next batch. Raises OSError when it is gone; the jobs are then still in `batch`."""
        self.batch.extend(jobs)
        self.deadline = time.monotonic() + timeout + (0 if self.ready else START_SECONDS)
        rows = [[[n, v if isinstance(v, str) else None] for n, v in job.values.items()] for job in jobs]
        self.wire.send_bytes(json.dumps(rows).encode())
        for data in (v for job in jobs for v in job.values.values() if isinstance(v, bytes)):
            self.wire.send_bytes(data)

    def receive(self, timeout: float) -> None:
        """Take one message. Raises EOFError or OSError when the child is gone, DataError when it cannot start."""
        answer = json.loads(self.wire.recv_bytes())
        self.deadline = time.monotonic() + timeout
        if "fatal" in answer:
            raise DataError(
                f"checking processes cannot load the modalities ({answer['fatal']}); define them in an importable module"
            )
        if "ready" in answer:
            self.ready = True
            return
        job = self.batch[0]
        if answer["reason"] is None:
            names = [n for n, v in job.values.items() if isinstance(v, str)]
            data = {n: self.wire.recv_bytes() for n in names}
            job.stamp = answer["stamp"]
            job.values.update(data)
        else:
            name = answer["modality"]
            job.reason, job.file = f"{name}: {answer['reason']}", job.files.get(name, job.file)
        self.batch.popleft()

    def end(self) -> int:
        """Kill it if it still runs; its exit status."""
        self.process.kill()
        self.wire.close()
        return self.process.wait()


class Checkers:
    """`workers` checking processes (at least one: a decoder never runs in the parent). A context manager."""

    def __init__(self, workers: int, used: list[str], options: dict[str, dict[str, Any]], max_bytes: int, timeout: float):
        settings = {"table": modalities.TABLE, "used": used, "options": options, "max_bytes": max_bytes}
        self.settings, self.timeout, self.workers = json.dumps(settings).encode(), timeout, max(1, workers)
        self.children: list[Child] = []
        self.stillborn = self.ahead = 0

    def __enter__(self) -> "Checkers":
        return self

    def __exit__(self, *_: Any) -> None:
        for child in self.children:
            child.end()

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs in order, each with its values read and checked, or with a reason. Memory is bounded."""
        source = iter(jobs)
        order: deque[Job] = deque()
        again: deque[Job] = deque()
        open_rows: set[int] = set()  # rows not answered yet
        while True:
            more = self._dispatch(source, order, again, open_rows)
            while order and order[0].row not in open_rows:
                job = order.popleft()
                self.ahead -= job.held
                yield job
            if not more and not order:
                return
            if any(c.batch for c in self.children):
                self._collect(again, open_rows)

    def _dispatch(self, source: Iterator[Job], order: deque[Job], again: deque[Job], open_rows: set[int]) -> bool:
        """Fill idle children; False once the source is exhausted."""
        while True:
            if not again and (len(order) > AHEAD_ROWS or self.ahead > AHEAD_BYTES):
                return True
            child = next((c for c in self.children if not c.batch), None)
            if child is None and len(self.children) >= self.workers:
                return True
            batch, more = _take(source, order, again, open_rows)
            if batch:
                if child is None:
                    self.children.append(child := Child(self.settings))
                try:
                    child.send(batch, self.timeout)
                except OSError:
                    self._bury(child, again, open_rows)
            if not more and not again:
                return False
            if not batch:
                return True  # a run of rows that need no checking: let them out first

    def _collect(self, again: deque[Job], open_rows: set[int]) -> None:
        """Wait for at least one message or deadline, and take what is there."""
        busy: dict[Any, Child] = {c.wire: c for c in self.children if c.batch}
        first = min(c.deadline for c in busy.values())
        for wire in wait(list(busy), max(0.0, first - time.monotonic())):
            child = busy[wire]
            try:
                done = child.batch[0]
                child.receive(self.timeout)
                if not child.batch or child.batch[0] is not done:
                    open_rows.discard(done.row)
                    done.held = sum(len(v) for v in done.values.values() if isinstance(v, bytes))
                    self.ahead += done.held
            except (EOFError, OSError):
                self._bury(child, again, open_rows)
        now = time.monotonic()
        for child in [c for c in self.children if c.batch and c.deadline < now and not c.wire.poll()]:
            self._bury(child, again, open_rows, f"takes longer than {self.timeout:g} s to decode (--timeout)")

    def _bury(self, child: Child, again: deque[Job], open_rows: set[int], reason: str = "") -> None:
        """Account for a dead or hanging child: the row it was at is rejected, the rest of its batch is checked again."""
        status = child.end()
        self.children.remove(child)
        if not child.ready:
            self.stillborn += 1
            if self.stillborn > 3:
                raise DataError(
                    f"checking processes cannot start (exit status {status}); try `python -m mmtune.data.pack.decode_worker` by hand"
                )
        elif child.batch:
            self.stillborn = 0
            job = child.batch.popleft()
            died = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            job.reason = f"{', '.join(job.values)}: {reason or f'crashes its decoder ({died})'}"
            open_rows.discard(job.row)
        again.extendleft(reversed(child.batch))


def _take(source: Iterator[Job], order: deque[Job], again: deque[Job], open_rows: set[int]) -> tuple[list[Job], bool]:
    """The next batch, and whether there may be more. Jobs that need no check only join the order."""
    batch: list[Job] = []
    size = 0
    for _ in range(AHEAD_ROWS):
        if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
            return batch, True
        if again:
            batch.append(again.popleft())
            continue
        job = next(source, None)
        if job is None:
            return batch, False
        order.append(job)
        if job.reason is None and not job.settled:
            open_rows.add(job.row)
            batch.append(job)
            size += sum(len(v) for v in job.values.values() if isinstance(v, bytes))
    return batch, True
