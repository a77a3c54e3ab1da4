"""A soak: clients, changes, promotions, rollbacks, a store that restarts and a disk that is full, for as long as you like.

    MMTUNE_SOAK_SECONDS=1800 MMTUNE_SOAK_CLIENTS=16 pytest -m slow -s tests/serve/test_soak.py

prints the p95, the statuses and the memory. Without these variables it runs for 20 seconds.
"""

import contextlib
import json
import os
import random
import resource
import signal
import threading
import time
from collections import Counter

import httpx
import numpy as np
import psutil
import pytest

from mmtune.index.collection import Collection
from tests.serve.test_process import wait
from tests.support.corpora import packed
from tests.support.serve_helpers import BEARER, TOKEN, Process, picture
from tests.support.store_helpers import postgres_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
SECONDS = float(os.environ.get("MMTUNE_SOAK_SECONDS", "20"))
CLIENTS = int(os.environ.get("MMTUNE_SOAK_CLIENTS", "16"))
QUERIES = [f"a {colour} square" for colour in ("red", "green", "blue", "yellow")]
DOCUMENTED = {200, 201, 404, 409, 429, 503, 507}
GROWTH = 1.25
"""Largest ratio of the memory at the end to that after a quarter of the time."""


class Soak:
    """What the clients saw. right: (version, query) -> ids of all items that no client changes, best first."""

    def __init__(self, server, right):
        self.server, self.right = server, right
        self.stop, self.statuses, self.seconds, self.wrong = threading.Event(), Counter(), [], []

    def client(self, n):
        rng = random.Random(n)
        with httpx.Client(base_url=self.server.url, headers=BEARER, timeout=60) as web:
            while not self.stop.is_set():
                try:
                    self.step(web, rng, n)
                except httpx.HTTPError as e:
                    self.wrong.append(repr(e))

    def step(self, web, rng, n):
        what, item = rng.random(), f"soak-{n}-{rng.randrange(3)}"
        begin = time.perf_counter()
        if what < 0.7:
            query = rng.choice(QUERIES)
            found = web.post("/search", json={"text": query, "k": 10})
            if found.status_code == 200:
                self.seconds.append(time.perf_counter() - begin)
                document = found.json()
                ids = [r["id"] for r in document["results"] if not r["id"].startswith("soak-")]
                if ids != self.right[document["version"], query][: len(ids)] or len(document["results"]) != 10:
                    self.wrong.append((document["version"], query, ids))
                elif rng.random() < 0.3:
                    event = {"query": document["query"], "item": ids[0] if ids else item, "kind": "click"}
                    self.count(web.post("/feedback", json=event))
        elif what < 0.9:
            files = {"image": ("x.png", picture(rng.choice(["red", "green", "blue"])))}
            found = web.put(f"/items/{item}", files=files)
        else:
            found = web.delete(f"/items/{item}")
        self.count(found)

    def count(self, response):
        self.statuses[response.status_code] += 1
        if response.status_code not in DOCUMENTED or (response.is_error and "error" not in response.json()):
            self.wrong.append((response.status_code, response.text[:200]))


@pytest.mark.parametrize("store", ["faiss", "pgvector"])
def test_soak(store, tmp_path):
    with postgres_server() if store == "pgvector" else contextlib.nullcontext() as database:
        path, place = tmp_path / "shop", {"store": store} | ({"url": database.url} if database else {})
        with Collection(path, create=True) as c:
            c.build("tiny:all", packed(tmp_path / "data", 24), quiet=True, **place)
            c.promote("v1")
            c.build("tiny:all@3", quiet=True, **place)
            right = {(v, q): c.search(text=q, k=24, version=v).ids for v in ("v1", "v2") for q in QUERIES}
        options = ("--no-page", "--token", TOKEN, "--rate-per-token", "0", "--rate-per-address", "0", "--quiet")
        with Process(path, *options) as server:
            wait(server)
            soak = Soak(server, right)
            threads = [threading.Thread(target=soak.client, args=(n,)) for n in range(CLIENTS)]
            process, memory = psutil.Process(server.process.pid), []
            for t in threads:
                t.start()
            begin = time.monotonic()
            events = [
                ("promote", 0.2),
                ("rollback", 0.35),
                ("restart", 0.45),
                ("full", 0.6),
                ("promote", 0.7),
                ("restart", 0.8),
                ("rollback", 0.9),
            ]
            with Collection(path) as c:
                for event, at in events:
                    while time.monotonic() < begin + at * SECONDS:
                        time.sleep(0.1)
                        memory.append(process.memory_info().rss)
                    if event == "promote":
                        c.promote("v2", force=True, why="soak")
                    elif event == "rollback":
                        c.rollback("soak")
                    elif event == "restart" and database:
                        database.stop()
                        time.sleep(1)
                        database.start()
                    elif event == "full":
                        process.rlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
                        time.sleep(max(1.0, 0.05 * SECONDS))
                        process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            while time.monotonic() < begin + SECONDS:
                time.sleep(0.1)
                memory.append(process.memory_info().rss)
            soak.stop.set()
            for t in threads:
                t.join(120)
            wait(server)  # whatever happened, it recovers by itself
            assert server.stop(signal.SIGTERM) == 0
        p95 = float(np.quantile(soak.seconds, 0.95)) * 1000
        print(
            json.dumps(
                {
                    "store": store,
                    "seconds": SECONDS,
                    "clients": CLIENTS,
                    "searches": len(soak.seconds),
                    "p95_ms": round(p95, 1),
                    "statuses": dict(soak.statuses),
                    "rss_mb": [round(m / 2**20) for m in (memory[len(memory) // 4], memory[-1])],
                }
            )
        )
        assert not soak.wrong, soak.wrong[:3]
        assert soak.statuses[200] > 100 and soak.statuses[503] + soak.statuses[507] > 0
        if SECONDS >= 300:  # before, caches still fill
            assert memory[-1] < GROWTH * memory[len(memory) // 4]
        with Collection(path) as c:  # nothing was lost or doubled: stores and catalog agree
            c.upsert([])
            for version in ("v1", "v2"):
                opened = c.open(version)
                for name, s in opened.stores.items():
                    ids = s.ids()
                    assert len(ids) == len(set(ids)) == c.catalog.counts()[name]
            assert not c.maintenance.verify().faults
