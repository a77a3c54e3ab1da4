"""Clients that send their bodies byte by byte, on every route at once: what they cost the others, measured on a real server."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from mmtune.serve.app import create_app
from mmtune.serve.page import page_router
from mmtune.serve.routes import router
from tests.serve.test_process import wait
from tests.support.serve_helpers import BEARER, TOKEN, Process, collection, copy_of, settings

pytestmark = pytest.mark.slow
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
"""Of the slow clients; the others are 127.0.0.1. Each address has a limit of its own."""
PER_ROUTE = 4
"""Slow bodies on every route and method; one of them has no token."""
ROUNDS, REQUESTS, CLIENTS = 8, 40, 2
"""Rounds without and with slow clients in turn, so that other load on the machine meets both; requests and clients of a round."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return copy_of(collection(tmp_path_factory), tmp_path_factory.mktemp("slow"))


def all_routes(path) -> list[tuple[str, str]]:
    """(method, path) of all routes of the application, the page and the login included; those that take no body get one, too."""
    service = create_app(path, settings(page=True, token=TOKEN)).state.service
    routes = [*router(service).routes, *page_router(service).routes]
    found = {(m, r.path) for r in routes for m in r.methods if m != "HEAD"} | {("GET", "/login"), ("POST", "/login")}
    names = {"id:path": "0-000", "id": "0-000", "modality": "image", "name": "style", "kind": "css"}
    return sorted((m, re.sub(r"\{([^}]+)\}", lambda part: names[part[1]], p)) for m, p in found)


class SlowClients:
    """A process that sends slow bodies. held: connections by route on which the server still waits for the body."""

    def __init__(self, url: str, routes: list[tuple[str, str]]):
        command = [sys.executable, str(Path(__file__).parents[1] / "support/slow_bodies.py"), url.rpartition(":")[2], TOKEN]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*command, str(PER_ROUTE), ",".join(ADDRESSES), json.dumps(routes)], **pipes)

    def __enter__(self):
        self.held = json.loads(self.process.stdout.readline())
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        assert self.process.wait(60) == 0


def measure(url: str, round_: int) -> list[float]:
    """Seconds of REQUESTS searches by CLIENTS clients, each with another text; all must be right."""
    seconds: list[float] = []
    wrong: list[str] = []

    def client(number: int) -> None:
        with httpx.Client(headers=BEARER, timeout=60) as web:
            for n in range(REQUESTS // CLIENTS):
                begin = time.perf_counter()
                found = web.post(url + "/search", json={"text": f"query {round_} {number} {n}", "k": 5})
                seconds.append(time.perf_counter() - begin)
                if found.status_code != 200 or len(found.json()["results"]) != 5:
                    wrong.append(found.text)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]
    return seconds


@pytest.mark.timeout(1200)
def test_slow_bodies_on_every_route_at_most_double_the_p95_of_others(path):
    routes = all_routes(path)
    assert {("POST", "/search"), ("POST", "/feedback"), ("PUT", "/items/0-000"), ("POST", "/login"), ("POST", "/page/")} <= set(
        routes
    )
    with Process(path, "--token", TOKEN) as server:
        wait(server)
        measure(server.url, -1)  # warm
        quiet, beset = list[float](), list[float]()
        for n in range(ROUNDS):
            quiet += measure(server.url, 2 * n)
            with SlowClients(server.url, routes) as slow:
                # the server waits for these bodies: all but those of clients without a token
                for route in ("POST /search", "POST /feedback", "PUT /items/0-000", "POST /login", "POST /page/"):
                    assert slow.held.get(route, 0) >= PER_ROUTE - 1, (route, slow.held)
                beset += measure(server.url, 2 * n + 1)
        p95 = [float(np.quantile(x, 0.95)) for x in (quiet, beset)]
        p50 = [float(np.median(x)) for x in (quiet, beset)]
        print(
            f"\n{len(routes)} routes, {sum(slow.held.values())} slow bodies at a time; {len(quiet)} searches without and {len(beset)} with them: "
            f"p50 {1e3 * p50[0]:.1f} and {1e3 * p50[1]:.1f} ms, p95 {1e3 * p95[0]:.1f} and {1e3 * p95[1]:.1f} ms"
        )
        assert p95[1] <= 2 * p95[0], (p50, p95)
        assert httpx.get(server.url + "/ready", headers=BEARER, timeout=60).status_code == 200
