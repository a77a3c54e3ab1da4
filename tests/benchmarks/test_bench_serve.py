"""Latency of searches over HTTP at 1, 8 and 32 clients, and what sharing forward passes gains over one at a time.

  pytest -m bench -s tests/benchmarks/test_bench_serve.py

Prints one JSON line: milliseconds and requests a second through a server process and as many keep-alive clients, all on this
machine's cores, with and without micro-batches; and the same of searches from threads, where HTTP does not dilute the gain.
cpu_ms is the server's processor time a search: what the gain is judged by, for a busy machine hardly disturbs it.
"""

import http.client
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mmtune.lifecycle.collection import Collection
from mmtune.serve.served import Served
from tests.corpora import packed
from tests.serve_helpers import Process

pytestmark = pytest.mark.bench
SECONDS = float(os.environ.get("MMTUNE_BENCH_SECONDS", "4"))
MODEL = os.environ.get("MMTUNE_BENCH_MODEL", "tiny:clip")
CLIENTS = (1, 8, 32)
WAYS = {"shared": ("--batch", "32", "--window", "2"), "one at a time": ("--batch", "1", "--window", "0")}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    with Collection(root / "shelf", create=True) as c:
        c.build(MODEL, packed(root / "data", 240, columns=("image", "text")), quiet=True)
        c.promote("v1")
    return root / "shelf"


def ready(url: str) -> None:
    for _ in range(1200):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise AssertionError("not ready")


def processor(pid: int) -> float:
    """Seconds of processor that a process has used; a busy machine disturbs them less than the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drive(ask, clients: int, pid: int) -> dict[str, float]:
    """`ask()(n)` in a loop from so many threads: {"per_second", "p50_ms", "p95_ms", "cpu_ms"}; every n is asked once.

    cpu_ms: processor time of process `pid` an ask.
    """
    end, took, guard, number = time.perf_counter() + SECONDS, [], threading.Lock(), iter(range(10**9))

    def loop(call) -> None:
        while (begin := time.perf_counter()) < end:
            with guard:
                n = next(number)
            call(n)
            took.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=loop, args=(ask(),)) for _ in range(clients)]
    begin, used = time.perf_counter(), processor(pid)
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    seconds = time.perf_counter() - begin
    p50, p95 = np.quantile(took, [0.5, 0.95])
    cpu = 1000 * (processor(pid) - used) / len(took)
    found = {"per_second": len(took) / seconds, "cpu_ms": cpu, "p50_ms": 1000 * p50, "p95_ms": 1000 * p95}
    return {k: round(float(v), 2) for k, v in found.items()}


def over_http(url: str, salt: str):
    def client():
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)

        def ask(n: int) -> None:  # never the same words: nothing comes from the cache
            body = json.dumps({"text": f"a red square {salt} {n}", "k": 10})
            connection.request("POST", "/search", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200 and len(json.loads(response.read())["results"]) == 10

        return ask

    return client


def ratio(ways: dict, clients: str, what: str) -> float:
    """How many times better shared passes are."""
    shared, alone = ways["shared"][clients][what], ways["one at a time"][clients][what]
    return alone / shared if what == "cpu_ms" else shared / alone


def in_threads(served: Served, salt: str):
    return lambda: lambda n: served.search(text=f"a red square {salt} {n}", k=10)


def test_latency_and_what_batches_gain(path):
    found: dict[str, dict] = {"http": {}, "search": {}}
    for way, options in WAYS.items():
        with Process(path, "--no-page", *options) as server:
            ready(server.url)
            drive(over_http(server.url, "warm"), 1, server.process.pid)
            found["http"][way] = {str(c): drive(over_http(server.url, f"{c}"), c, server.process.pid) for c in CLIENTS}
        batch, window = int(options[1]), float(options[3]) / 1000
        with Served(path, window, batch) as served:
            served.search(text="warm")
            found["search"][way] = {}
            for c in CLIENTS:
                served.batcher.expected = lambda c=c: c  # as the service tells how many are under way
                found["search"][way][str(c)] = drive(in_threads(served, f"{c}"), c, os.getpid())
    gain = {
        f"{kind}, {what}": {c: round(ratio(ways, c, what), 2) for c in ways["shared"]}
        for kind, ways in found.items()
        for what in ("per_second", "cpu_ms")
    }
    print(json.dumps({"bench": "serve", "model": MODEL, "cores": os.cpu_count(), "seconds": SECONDS, **found, "gain": gain}))
    assert gain["search, cpu_ms"]["32"] >= 2, gain
