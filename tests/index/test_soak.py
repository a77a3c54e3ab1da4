"""A soak: 16 clients against a real server whose database goes away twice and whose disk is full once, while versions switch.

MMTUNE_SOAK_MINUTES: how long (default 1); MMTUNE_SOAK_PAUSE: mean pause of a client between requests, in seconds.
"""

import os
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from mmtune.contracts import Row
from mmtune.index.collection import Collection
from tests.support.serve_helpers import BEARER, TOKEN, Process
from tests.support.soak import Client, Report, fill, percentile, resident, small_disk, switch
from tests.support.store_helpers import postgres_server

MINUTES = float(os.environ.get("MMTUNE_SOAK_MINUTES", "1"))
PAUSE = float(os.environ.get("MMTUNE_SOAK_PAUSE", "0.1"))
CLIENTS = 16
AWAY = min(10.0, 60 * MINUTES / 12)
"""How long the database is away, and the disk is full."""


def prepare(path: Path, url: str) -> None:
    """v1 live and v2 staged, of two models, over captions that no client owns."""
    rows = [Row(f"base-{n}", None, {"text": f"a thing number {n}".encode()}, {"owner": "nobody"}) for n in range(200)]
    with Collection(path, create=True) as coll:
        coll.upsert(rows)
        for model in ("tiny:clip", "tiny:clip@1"):
            coll.build(model, store="pgvector", url=url, modalities=["text"], index="flat", quiet=True)
        coll.promote("v1")


def wait_ready(url: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(url + "/ready", timeout=10, headers=BEARER).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("the server did not become ready")


@pytest.mark.slow
@pytest.mark.timeout(600 + 90 * MINUTES)
def test_no_wrong_answer_while_things_go_away(tmp_path):
    pytest.importorskip("psycopg"), pytest.importorskip("pgserver")
    report, lock, stop, moves, memory = Report(), threading.Lock(), threading.Event(), Counter(), []
    with postgres_server() as database, small_disk(tmp_path / "disk", 256) as mounted:
        path = tmp_path / "disk" / "shop"
        prepare(path, database.url)
        with Process(path, "--token", TOKEN, "--no-page", env={"OMP_NUM_THREADS": "1"}) as server:
            wait_ready(server.url)
            clients = [Client(server.url, n, report, lock, PAUSE) for n in range(CLIENTS)]
            threads = [threading.Thread(target=c.run, args=(stop,)) for c in clients]
            threads.append(threading.Thread(target=switch, args=(path, stop, max(1.0, MINUTES), moves, report.wrong)))
            for t in threads:
                t.daemon = True  # a failure below must not wait for them
                t.start()
            begin, end = time.monotonic(), time.monotonic() + 60 * MINUTES
            events = [(0.25, "database"), (0.5, "disk"), (0.7, "database")]
            while time.monotonic() < end and server.process.poll() is None:
                memory.append((time.monotonic() - begin, resident(server.process.pid)))
                if events and time.monotonic() - begin > events[0][0] * 60 * MINUTES:
                    _, what = events.pop(0)
                    if what == "database":
                        database.stop()
                        time.sleep(AWAY)
                        database.start()
                    elif mounted:
                        report.large_writes.set()
                        fill(tmp_path / "disk" / "filler")
                        time.sleep(AWAY)
                        report.large_writes.clear()
                        (tmp_path / "disk" / "filler").unlink()
                    wait_ready(server.url)
                time.sleep(min(2.0, MINUTES))
            stop.set()
            for t in threads:
                t.join()
            assert server.process.poll() is None, server.said[-3000:]
        at_rest = state_at_rest(path, clients, report.wrong)
    print(server.said[-2000:])
    print(*[line for line in server.said.splitlines() if "cannot be read or written" in line], sep="\n")
    quarter = [mb for t, mb in memory if 15 * MINUTES < t < 30 * MINUTES], [mb for t, mb in memory if t > 45 * MINUTES]
    early, late = (statistics.median(q) for q in quarter)
    figures = (
        f"{MINUTES:g} min, {CLIENTS} clients: {len(report.searches)} searches (p50 {1000 * percentile(report.searches, 0.5):.0f} ms, "
        f"p95 {1000 * percentile(report.searches, 0.95):.0f} ms), {len(report.writes)} writes (p95 "
        f"{1000 * percentile(report.writes, 0.95):.0f} ms), {report.checked} answers checked, {dict(report.versions)}, {dict(moves)}, "
        f"answers {dict(report.statuses)}, RSS {early:.0f} MB then {late:.0f} MB, disk full: {mounted}, {at_rest} items at the end"
    )
    print("\n" + figures)
    assert not report.wrong, f"{len(report.wrong)}: {report.wrong[:10]}\n{figures}"
    assert report.checked > 50 and report.statuses["503 store_unavailable"] and min(report.versions.values()) > 0, figures
    assert not mounted or report.statuses["507 disk_full"], figures
    assert late < 1.1 * early + 20, figures


def state_at_rest(path: Path, clients: list[Client], wrong: list[str]) -> int:
    """After everything: both versions hold exactly what was answered; nothing is lost, doubled or another item's vector."""
    with Collection(path) as coll:
        behind = coll.updates.update_all()
        ids = {i.id for items in coll.catalog.changed(0) for i in items if not i.deleted}
        for client in clients:
            here = {i for i in ids if i.startswith(client.name)}
            present = {i for i, c in client.certain.items() if c is not None}
            if here - set(client.unsure) != present:
                wrong.append(f"at rest: {client.name}: {sorted((here - set(client.unsure)) ^ present)}")
        stored = {v: sorted(coll.open(v).stores["text"].ids()) for v in coll.layout.versions()}
        wrong += [f"at rest: {v} differs from the catalog" for v, found in stored.items() if found != sorted(ids)]
        wrong += [*behind.values(), *coll.maintenance.verify().faults]
    return len(ids)
