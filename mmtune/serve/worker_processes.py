"""Serve one collection from several processes that share one listening socket.

The parent binds the address and starts the workers; the operating system gives each connection to one of them. Every worker is a
whole server: it loads the model, follows promotions, and batches its own searches. The workers share the metrics, the keys of
sessions, and the contents of recent queries, to which feedback may come through another worker.
"""

import contextlib
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout
from mmtune.serve.app import create_app, require_packages
from mmtune.serve.config_file import ServeConfig
from mmtune.serve.request_log import configure_logs
from mmtune.serve.server import ServerResult, bind_address, serve_app, url_of

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

log = logging.getLogger("mmtune.serve")
SHORT_SECONDS = 20.0
"""A worker that ended sooner after its start counts as failed."""
MAX_FAILURES = 5
"""After so many failed workers in a row, the server stops."""
KILL_SECONDS = 10.0
"""Seconds beyond the grace period after which a worker that does not stop is killed."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is started with. spool, session_key: see `Settings`."""

    config: ServeConfig
    quiet: bool
    spool: Path
    session_key: bytes


def run_workers(config: ServeConfig, quiet: bool = False) -> ServerResult:
    """Serve the collection from `config.workers` processes until SIGINT or SIGTERM.

    A worker that ends is replaced. Raises DataError if the address cannot be used, or if the workers end again and again right
    after they start.
    """
    settings = config.settings()  # reports mistakes before any worker is started
    CollectionLayout(config.collection)
    require_packages()
    configure_logs(settings, quiet)
    with bind_address(config.host, config.port) as listening, tempfile.TemporaryDirectory(prefix="mmtune-serve-") as shared:
        listening.listen(2048)
        url = url_of(listening)
        if not quiet:
            print(f"{url}  ({config.workers} workers; Ctrl-C to stop)", file=sys.stderr, flush=True)
        (Path(shared) / "metrics").mkdir()
        (Path(shared) / "queries").mkdir()
        spec = WorkerSpec(config, quiet, Path(shared) / "queries", secrets.token_bytes(32))
        with _environment({"PROMETHEUS_MULTIPROC_DIR": f"{shared}/metrics", **_threads(config.workers)}):
            requests = _Supervisor(spec, listening, config.drain + config.grace).run()
    return ServerResult(url, requests)


class _Supervisor:
    """Starts the workers, replaces those that end, and stops them at a signal."""

    def __init__(self, spec: WorkerSpec, listening: socket.socket, stop_seconds: float):
        self.spec, self.listening, self.stop_seconds = spec, listening, stop_seconds
        self.context = multiprocessing.get_context("spawn")
        self.requests = self.context.Value("Q", 0)
        self.stopped = threading.Event()
        self.workers: dict[SpawnProcess, float] = {}
        self.failures = 0

    def run(self) -> int:
        """Run until a signal; returns the number of requests that were served."""
        handlers = {s: signal.signal(s, lambda *_: self.stopped.set()) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for _ in range(self.spec.config.workers):
                self.start()
            while not self.stopped.wait(0.2):
                self.replace_ended()
        finally:
            self.stop()
            for s, handler in handlers.items():
                signal.signal(s, handler)
        return int(self.requests.value)

    def start(self) -> None:
        worker = self.context.Process(target=run_worker, args=(self.spec, self.listening, self.requests))
        worker.start()
        self.workers[worker] = time.monotonic()

    def replace_ended(self) -> None:
        for worker, started in list(self.workers.items()):
            if worker.is_alive():
                self.failures = 0 if time.monotonic() - started > SHORT_SECONDS else self.failures
                continue
            del self.workers[worker]
            log.error("worker %s ended with status %s", worker.pid, worker.exitcode)
            self.failures += time.monotonic() - started < SHORT_SECONDS
            if self.failures >= MAX_FAILURES:
                raise DataError(f"{MAX_FAILURES} workers ended right after they had started; see the log above")
            self.start()

    def stop(self) -> None:
        """Ask all workers to stop, wait until they have finished their requests, and kill those that do not stop."""
        for worker in self.workers:
            worker.terminate()
        end = time.monotonic() + self.stop_seconds + KILL_SECONDS
        for worker in self.workers:
            worker.join(max(0.0, end - time.monotonic()))
            if worker.is_alive():
                log.error("worker %s does not stop; it is killed", worker.pid)
                worker.kill()
                worker.join()


def run_worker(spec: WorkerSpec, listening: socket.socket, requests: "Synchronized[int]") -> None:
    """Serve in this process until SIGTERM, or until the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent sends SIGTERM
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    settings = spec.config.settings(spec.spool, spec.session_key)
    configure_logs(settings, spec.quiet)
    served = serve_app(create_app(spec.config.collection, settings), settings, listening)
    with requests.get_lock():
        requests.value += served


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _threads(workers: int) -> dict[str, str]:
    """Share the CPU cores among the workers: threads of torch and faiss, unless the user has set their number."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // workers))}


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Context manager that sets environment variables, for the processes that are started in it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
