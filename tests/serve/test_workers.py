"""Several processes on one port, and stopping under load: real processes and signals."""

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter

import httpx
import psutil
import pytest

from mmtune.index.collection import Collection
from mmtune.index.feedback.feedback import FeedbackLog
from mmtune.index.monitoring.probe_log import run_probe
from mmtune.index.monitoring.traffic_history import TrafficHistory
from tests.serve.test_process import wait
from tests.support.serve_helpers import BEARER, TOKEN, Process, collection, copy_of, picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


def ask(server, **body):
    """One search on a connection of its own, so that any worker may get it."""
    return httpx.post(server.url + "/search", json={"k": 5, **body}, timeout=60, headers=BEARER)


def children(server):
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.Error):  # a zombie
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_a_worker(server):
    """Kill one of two workers, and wait until another has taken its place."""
    victim = children(server)[0]
    victim.kill()
    end = time.monotonic() + 120
    while len({p.pid for p in children(server)} - {victim.pid}) < 2:
        assert time.monotonic() < end
        time.sleep(0.2)


def metric(server, name):
    lines = httpx.get(server.url + "/metrics", timeout=60, headers=BEARER).text.splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(name) and x[len(name)] in " {")


def wait_for_all(server, count):
    """Until every worker has answered: each connection goes to one of them by chance."""
    wait(server)
    end = time.monotonic() + 180
    while len(children(server)) < count:
        assert time.monotonic() < end, server.said
        time.sleep(0.2)
    for _ in range(40):
        assert ask(server, text="warm").status_code == 200


def test_two_workers_serve_one_collection(shelf, tmp_path):
    path = copy_of(shelf, tmp_path)
    with Process(path, "--workers", "2", "--token", TOKEN, "--log", "json", "--access-log") as server:
        wait_for_all(server, 2)
        assert "(2 workers" in server.said and len(children(server)) == 2
        answered = Counter()
        with Collection(path) as c:
            right = {v: c.search(text="a red square", k=5, version=v).ids for v in ("v1", "v2")}

            def all_answer(version):
                for _ in range(24):
                    found = ask(server, text="a red square").json()
                    assert (found["version"], [r["id"] for r in found["results"]]) == (version, right[version])
                    answered[version] += 1

            all_answer("v1")
            c.promote("v2", force=True, why="a test")
            all_answer("v2")  # the very next request, in whichever worker
            c.rollback("a test")
            all_answer("v1")
        # a change through one worker is seen through all
        files = {"image": ("x.png", picture("green"))}
        done = httpx.put(server.url + "/items/new", files=files, headers=BEARER, timeout=60)
        assert done.status_code == 201
        for _ in range(24):
            assert httpx.get(server.url + "/items/new", headers=BEARER, timeout=60).status_code == 200
            assert len(ask(server, item="new").json()["results"]) == 5
        # feedback may reach another worker than the search: the query's content is kept all the same
        searches = [ask(server, text=f"query number {n}").json() for n in range(12)]
        for found in searches:
            event = {"query": found["query"], "item": found["results"][0]["id"], "kind": "match"}
            assert httpx.post(server.url + "/feedback", json=event, headers=BEARER, timeout=60).status_code == 201
        events = FeedbackLog(path).events()
        assert len(events) == 12 and {e["modality"] for e in events} == {"text"}
        assert metric(server, "mmtune_searches_total") >= 24 * 3 + 12  # the sum over the workers
        assert metric(server, "mmtune_items") == 25 and metric(server, "mmtune_under_way") == 0
        # a worker that is killed is replaced, and nobody else notices
        kill_a_worker(server)
        assert "ended with status -9" in server.said
        assert ask(server, text="x").status_code == 200
        pids = [p.pid for p in children(server)]
        assert server.stop(signal.SIGTERM) == 0, server.said
        assert not any(psutil.pid_exists(p) for p in pids)
        for line in server.said.splitlines()[2:]:
            json.loads(line)  # whatever a worker says is a JSON line
        assert TOKEN not in server.said


def test_workers_end_with_their_parent(shelf):
    with Process(shelf, "--workers", "2", "--token", TOKEN) as server:
        wait_for_all(server, 2)
        workers = children(server)
        os.kill(server.process.pid, signal.SIGKILL)
        gone, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_a_stop_under_load_loses_no_answer(shelf, options):
    """Sixteen clients without a pause: the server answers as many requests as it took, and afterwards refuses connections.

    A connection that the server had not accepted when it stopped is reset by the kernel, before any byte of its request was read; one
    whose request had not arrived yet is closed.
    """
    with Process(shelf, "--no-page", "--token", TOKEN, "--drain", "2", "--grace", "30", "--json", *options) as server:
        wait_for_all(server, 2) if options else wait(server)
        wrong, served, not_ready, stopping = [], Counter(), [], threading.Event()
        before = metric(server, "mmtune_requests_total") + 1  # this request itself

        def client(n):
            with httpx.Client(headers=BEARER, timeout=60) as web:
                k = 0
                while True:
                    k += 1
                    try:
                        found = web.post(server.url + "/search", json={"text": f"client {n} query {k}", "k": 3})
                        if found.status_code != 200 or len(found.json()["results"]) != 3:
                            wrong.append(found.text)
                        served[n] += 1
                        if found.headers.get("connection") == "close" and not not_ready:
                            not_ready.append(web.get(server.url + "/ready").status_code)
                    except (httpx.ConnectError, httpx.ReadError) as e:
                        if not stopping.is_set():
                            wrong.append(repr(e))
                        return  # the server is gone
                    except httpx.HTTPError as e:
                        if not (stopping.is_set() and str(e) == "Server disconnected without sending a response."):
                            wrong.append(repr(e))
                        return  # a connection on which the server had not read a request yet; `taken` below counts those that it had

        threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
        for t in threads:
            t.start()
        while sum(served.values()) < 100:
            assert not wrong and server.process.poll() is None, (wrong[:2], server.said)
            time.sleep(0.05)
        stopping.set()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(90) == 0, server.said
        for t in threads:
            t.join(60)
        assert not wrong, wrong[:3]
        assert not_ready and (set(not_ready) == {503} or options)  # of two workers, the other one may not have heard of it yet
        taken = json.loads(server.process.stdout.read())["requests"]
        assert taken <= before + sum(served.values()) + len(not_ready)  # none was taken whose client has no answer
        assert "Traceback" not in server.said, server.said


def test_two_workers_count_every_search_and_report_the_same(shelf, tmp_path):
    """The search page, the monitoring page and the history: whichever worker answers, no search is lost or counted twice."""
    path = copy_of(shelf, tmp_path)
    history = TrafficHistory(path)

    def counted():
        out = Counter()
        for c in history.read():
            out[c.key.version, c.key.by] += c.searches
        return dict(out)

    def until_counted(right, seconds=90):
        end = time.monotonic() + seconds
        while counted() != right:
            assert time.monotonic() < end, (counted(), right)
            time.sleep(0.5)

    def report(web):
        lines = {x["name"]: x for x in web.get(server.url + "/monitoring/report").json()["lines"]}
        return lines["searches"]["value"], lines["recall of the index"]["verdict"]

    def each_worker(get):
        """What many new connections get: each goes to one of the workers by chance."""
        found = set()
        for _ in range(16):
            with httpx.Client(headers=BEARER, timeout=120) as web:
                found.add(get(web))
        return found

    with Process(path, "--workers", "2", "--token", TOKEN) as server:
        wait_for_all(server, 2)  # 40 searches
        for n in range(20):
            page = httpx.get(server.url + "/page/", params={"by": "text", "text": f"page {n}"}, headers=BEARER, timeout=60)
            assert page.status_code == 200 and 'id="live"' in page.text and 'id="beside"' in page.text  # v1, and v2 beside it
        files = {"image": ("x.png", picture("green"))}
        for _ in range(6):
            assert httpx.post(server.url + "/search", files=files, headers=BEARER, timeout=60).status_code == 200
        right = {("v1", "text"): 60, ("v2", "text"): 20, ("v1", "image"): 6}
        until_counted(right)  # while the server runs, without a stop
        assert each_worker(report) == {("86 in the last 24 hours", "unknown")}
        with Collection(path) as c:
            assert run_probe(c.layout, c.catalog, c.pool).ok  # by another process, as from cron
        assert each_worker(report) == {("86 in the last 24 hours", "ok")}
        pages = each_worker(lambda web: web.get(server.url + "/monitoring").text.count("86 in the last 24 hours"))
        assert pages == {1}
        # a killed worker loses nothing that was written, and its successor goes on
        kill_a_worker(server)
        wait(server)
        assert counted() == right
        answered = 0
        for n in range(30):
            with contextlib.suppress(httpx.TransportError):  # the successor may not listen yet
                answered += ask(server, text=f"after {n}").status_code == 200
        assert answered == 30
        assert server.stop(signal.SIGTERM) == 0, server.said
    assert counted() == {**right, ("v1", "text"): 90}  # the rest was written at the stop
    with Process(path, "--token", TOKEN) as server:
        wait(server)
        assert each_worker(report) == {("116 in the last 24 hours", "ok")}
