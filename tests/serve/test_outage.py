"""What clients see while a database is away, a disk is full, or a version is damaged; and that the server recovers by itself."""

import errno
import gc
import logging
import sqlite3
import time
import weakref
from pathlib import Path

import pytest

from mmtune.errors import DataError, ModelError, StoreUnavailable
from mmtune.index.collection import Collection
from mmtune.index.collection_layout import CollectionLayout
from mmtune.serve.responses import public_message, request_error
from tests.serve.test_rest import refused, wait_ready
from tests.support.corpora import packed
from tests.support.serve_helpers import client, collection, copy_of
from tests.support.store_helpers import postgres_server


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


@pytest.fixture
def fresh_log(monkeypatch):
    """No error was logged before."""
    from mmtune.serve import responses
    from mmtune.serve.rate_limit import RateLimiter

    monkeypatch.setattr(responses, "_logged", RateLimiter(0, 1))


def test_a_database_outage_is_503_and_over_when_it_is_over(tmp_path, caplog, fresh_log):
    with postgres_server() as database:
        path = tmp_path / "shop"
        with Collection(path, create=True) as c:
            c.build("tiny:all", packed(tmp_path / "data", 12), store="pgvector", url=database.url, quiet=True)
            c.promote("v1")
        secret = database.url.split("host=")[1][:20]  # the directory of the socket
        with client(path) as web, caplog.at_level(logging.ERROR, "mmtune.serve"):
            wait_ready(web)
            asks = [
                {"text": "red"},
                {"item": "0-000"},
                {"text": "red", "group_by": "group"},
                {"text": "red", "filter": "shade = 'dark'"},
            ]
            before = [web.post("/search", json=a).json()["results"] for a in asks]
            assert all(before) and not caplog.text
            database.stop()
            for ask in asks:
                found = web.post("/search", json=ask)
                assert refused(found, 503)["code"] == "store_unavailable", ask
                assert found.headers["retry-after"] == "1"
                assert secret not in found.text and str(path) not in found.text and "postgresql" not in found.text
            assert refused(web.get("/ready"), 503)["code"] == "store_unavailable"
            assert web.get("/health").status_code == 200 and web.get("/items/0-000").status_code == 200
            assert "cannot be reached" in caplog.text and "postgresql" in caplog.text  # the operator sees which
            database.start()
            wait_ready(web)
            assert [web.post("/search", json=a).json()["results"] for a in asks] == before


@pytest.mark.slow
def test_a_server_that_starts_during_the_outage_is_ready_after_it(tmp_path, caplog):
    with postgres_server() as database:
        path = tmp_path / "shop"
        with Collection(path, create=True) as c:
            c.build("tiny:all", packed(tmp_path / "data", 12), store="pgvector", url=database.url, quiet=True)
            c.promote("v1")
        database.stop()
        with client(path) as web:
            refused(web.get("/ready"), 503)
            assert refused(web.post("/search", json={"text": "red"}), 503)["code"] == "store_unavailable"
            database.start()
            wait_ready(web)
            assert web.post("/search", json={"text": "red"}).status_code == 200


def test_errors_of_the_disk_are_not_the_clients(shelf, tmp_path, caplog, fresh_log):
    root = Path("/srv/shop")
    full = OSError(errno.ENOSPC, "No space left on device", "/srv/shop/corpus/items.sqlite")
    cases = [
        (full, 507, "disk_full"),
        (sqlite3.OperationalError("database or disk is full"), 507, "disk_full"),
        (OSError(errno.EIO, "Input/output error", "/srv/shop/x"), 503, "storage"),
        (sqlite3.OperationalError("disk I/O error"), 503, "storage"),
        (StoreUnavailable("postgresql db.internal/shop table t: connection refused"), 503, "store_unavailable"),
        (ModelError("/srv/shop/models/abc: weights changed"), 503, "not_open"),
        (DataError("/srv/shop: no version 'v9'"), 404, "not_found"),
    ]
    for error, status, code in cases:
        found = request_error(error, 404, root)
        assert (found.status, found.code) == (status, code)
        assert "/srv" not in found.message and "db.internal" not in found.message
    assert caplog.text.count("ERROR") == 6


def test_messages_have_no_paths_of_the_server():
    root = Path("/srv/my shop/shelf")
    for line, public in {
        "/srv/my shop/shelf: no version 'v9'": "no version 'v9'",
        "version v1: /srv/my shop/shelf/versions/v1 is a copy": "version v1: shelf/versions/v1 is a copy",
        "v1: the file /var/lib/x/y.bin is gone": "v1: the file [path] is gone",
        "filter: no column '/etc/passwd'": "filter: no column '/etc/passwd'",  # the client's own words
        "a or b / c": "a or b / c",
    }.items():
        assert public_message(DataError(line), root) == public


def test_an_unknown_version_of_a_relative_collection_names_no_path(shelf, tmp_path, monkeypatch):
    path = copy_of(shelf, tmp_path)
    monkeypatch.chdir(path.parent)
    with client(Path("shelf")) as web:
        message = refused(web.post("/search", json={"text": "x", "version": "v9"}), 404)["message"]
        assert message == "no version 'v9'; existing versions: v1, v2"


def test_a_damaged_version_does_not_end_the_watcher(shelf, tmp_path, caplog, monkeypatch):
    """Whatever a library raises about the staged version, the live one is loaded, and later ones are followed."""
    path = copy_of(shelf, tmp_path)
    real = CollectionLayout.record

    def broken(self, version):
        if version == "v2":
            raise RecursionError("from the depths of a library")
        return real(self, version)

    monkeypatch.setattr(CollectionLayout, "record", broken)
    with caplog.at_level(logging.ERROR, "mmtune.serve"), client(path) as web:
        wait_ready(web, "v1")
        end = time.monotonic() + 60
        while "version v2 cannot be loaded: RecursionError" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.3)
        assert caplog.text.count("version v2 cannot be loaded") == 1  # once, not at every check
        monkeypatch.setattr(CollectionLayout, "record", real)
        while "v2" not in web.service.collection.open_versions:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_an_unreadable_pointer_is_logged_and_followed_again(shelf, tmp_path, caplog):
    path = copy_of(shelf, tmp_path)
    whole = (path / "live.json").read_bytes()
    with caplog.at_level(logging.ERROR, "mmtune.serve"), client(path) as web:
        wait_ready(web)
        (path / "live.json").write_bytes(b"{}")
        for _ in range(3):
            error = refused(web.get("/ready"), 503)
            assert str(path) not in error["message"]
            refused(web.post("/search", json={"text": "x"}), 503)
        (path / "live.json").write_bytes(whole)
        wait_ready(web)


@pytest.mark.slow
def test_following_ten_promotions_holds_few_models(shelf, tmp_path, monkeypatch):
    from mmtune.serve import version_watcher

    monkeypatch.setattr(version_watcher, "IDLE_SECONDS", 0.0)
    path, alive = copy_of(shelf, tmp_path), weakref.WeakSet()
    with client(path) as web, Collection(path) as c:
        wait_ready(web)
        for n in range(3, 13):
            c.build(f"tiny:all@{10 + n}", quiet=True)
            c.promote(f"v{n}", force=True, why="a test")
            wait_ready(web, f"v{n}")
            alive.add(web.service.collection.open().model)
        pool = web.service.collection.pool
        for _ in range(100):
            if len(pool.names) <= 2:
                break
            time.sleep(0.05)
        assert pool.names == {"v11", "v12"} and len(pool._models) == 2  # the live one and the one to roll back to
        gc.collect()
        assert len(alive) <= 2
