"""Latency of searches over HTTP at 1, 8 and 32 clients, and what answering together gains over one at a time.

  pytest -m bench -s tests/benchmarks/test_bench_serve.py

Two server processes over one collection, `--batch 32` and `--batch 1 --window 0`, the clients of `http_load` in a third; both
servers in turn, MMTUNE_BENCH_ROUNDS times MMTUNE_BENCH_SECONDS, medians. Prints one JSON line: searches a second, milliseconds,
and cpu_ms, the server's processor time a search, which other work on the machine hardly disturbs. MMTUNE_BENCH_MODEL: another
model than tiny:clip; MMTUNE_BENCH_KINDS: text, image.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from mmtune.index.collection import Collection
from tests.support.corpora import packed
from tests.support.serve_helpers import Process

pytestmark = pytest.mark.bench
SECONDS = float(os.environ.get("MMTUNE_BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("MMTUNE_BENCH_ROUNDS", "3"))
MODEL = os.environ.get("MMTUNE_BENCH_MODEL", "tiny:clip")
KINDS = os.environ.get("MMTUNE_BENCH_KINDS", "text,image").split(",")
CLIENTS = (1, 8, 32)
WAYS = {"together": ("--batch", "32"), "one at a time": ("--batch", "1", "--window", "0")}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    with Collection(root / "shelf", create=True) as c:
        c.build(MODEL, packed(root / "data", 240, columns=("image", "text")), quiet=True)
        c.promote("v1")
    return root / "shelf"


@pytest.fixture(scope="module")
def servers(shelf):
    with Process(shelf, "--no-page", *WAYS["together"]) as one:
        with Process(shelf, "--no-page", *WAYS["one at a time"]) as two:
            for server in (one, two):
                ready(server.url)
            yield dict(zip(WAYS, (one, two), strict=True))


def ready(url: str) -> None:
    for _ in range(1200):
        try:
            if httpx.get(url + "/ready", timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("not ready")


def processor(pid: int) -> float:
    """Seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(server: Process, clients: int, kind: str, salt: str, seconds: float = SECONDS) -> dict[str, float]:
    used = processor(server.process.pid)
    command = [sys.executable, "-m", "tests.benchmarks.http_load", server.url, str(clients), str(seconds), kind, salt]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found | {"cpu_ms": round(1000 * (processor(server.process.pid) - used) / found["asked"], 2)}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {k: statistics.median(r[k] for r in runs) for k in runs[0] if k != "asked"}


def test_latency_and_what_answering_together_gains(servers):
    found: dict[str, dict] = {}
    for kind in KINDS:
        for server in servers.values():
            load(server, 8, kind, "warm", 1)
        for clients in CLIENTS:
            runs: dict[str, list] = {way: [] for way in WAYS}
            for number in range(ROUNDS):
                for way in list(WAYS)[:: 1 if number % 2 else -1]:
                    runs[way].append(load(servers[way], clients, kind, f"{way} {number} {clients}"))
            figures = {way: medians(r) for way, r in runs.items()}
            together, alone = figures["together"], figures["one at a time"]
            figures["gain"] = {
                "per_second": round(together["per_second"] / alone["per_second"], 2),
                "cpu_ms": round(alone["cpu_ms"] / together["cpu_ms"], 2),
            }
            found[f"{kind}, {clients} clients"] = figures
    about = {"bench": "serve", "model": MODEL, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps({**about, "seconds": SECONDS, "rounds": ROUNDS, **found}))
    gains = {kind: found[f"{kind}, 32 clients"]["gain"]["per_second"] for kind in KINDS}
    assert min(gains.values()) >= 2, gains


def test_latency_while_a_tenth_of_the_searches_are_repeated_on_a_staged_version(servers, shelf):
    """The same server with the shadow off and on, in turn, at 8 clients: what those who search feel of it."""
    server, runs = servers["together"], dict[str, list]({"off": [], "on": []})
    with Collection(shelf) as c:
        version = c.build("tiny:clip@1", quiet=True)["version"]
        for number in range(2 * ROUNDS):
            for way in list(runs)[:: 1 if number % 2 else -1]:
                c.shadow(version if way == "on" else None)
                load(server, 8, "text", f"{way} {number} before", 0.5)  # opens the staged version
                runs[way].append(load(server, 8, "text", f"{way} {number}"))
        repeated = c.shadow_report(version)
    figures = {way: medians(r) for way, r in runs.items()}
    print(
        json.dumps(
            {
                "bench": "serve, shadow",
                "model": MODEL,
                "rounds": 2 * ROUNDS,
                "repeated": repeated["searches"],
                "dropped": repeated["dropped"],
                **figures,
            }
        )
    )
    assert repeated["searches"] > 50 and not repeated["errors"]
    assert figures["on"]["p95_ms"] < 1.5 * figures["off"]["p95_ms"], figures
