"""LanceDB in object storage: a collection from build to rollback in a bucket of a real S3 server (moto), and what happens when it is away."""

import logging
import socket

import httpx
import pytest

from mmtune.errors import DataError, StoreUnavailable
from mmtune.index.collection import Collection
from mmtune.index.stores import open_store
from tests.index.stores.test_collection_in_every_store import use_collection
from tests.support.index_helpers import BASE, OTHER, coll_fixture, row, shelf_fixture  # noqa: F401

pytest.importorskip("lancedb")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch):
    """(server, client, URL of a prefix in an empty bucket); the environment has what LanceDB needs to reach it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": endpoint,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()  # moto keeps its buckets for the whole process
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="shop")
    yield server, client, "s3://shop/indexes"
    server.stop()


def tables(client) -> set[str]:
    """The tables in the bucket."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="shop", Prefix="indexes/")
    return {key["Key"].split("/")[1] for page in pages for key in page.get("Contents", [])}


def test_a_collection_in_a_bucket(bucket, coll, shelf, tmp_path):
    _, client, url = bucket
    use_collection(tmp_path / "other", shelf["data"], "lancedb", url, coll)
    with Collection(tmp_path / "other") as other:
        uid = other.layout.manifest["uid"]
        assert tables(client) == {f"other_{uid}_{v}_image.lance" for v in ("v2", "v3")}


def test_backups_clones_and_gc_of_a_collection_in_a_bucket(bucket, shelf, tmp_path):
    _, client, url = bucket
    with Collection(tmp_path / "shop", create=True) as shop:
        shop.build(BASE, shelf["data"], store="lancedb", url=url, modalities=["image"], quiet=True)
        shop.promote("v1")
        shop.upsert([row("new", "red", 5)])
        shop.delete(["0-001"])
        right = shop.search(text="a red square", k=50).results
        assert {r["id"] for r in right} >= {"new"} and len(right) == 24
        assert (
            shop.maintenance.compact().notes["v1 image"].startswith("files merged") and shop.maintenance.verify().faults == []
        )
        shop.maintenance.clone(tmp_path / "copy")
        with Collection(tmp_path / "copy") as copy:
            assert copy.search(text="a red square", k=50).results == right
            copy.delete(["new"])
            assert len(copy.search(text="x", k=50).ids) == 23
            uids = [c.layout.manifest["uid"] for c in (shop, copy)]
        assert shop.search(text="a red square", k=50).results == right
        assert tables(client) == {f"{n}_{u}_v1_image.lance" for n, u in zip(("shop", "copy"), uids, strict=True)}


def test_a_bucket_that_is_away_is_an_outage_and_no_missing_table(bucket, shelf, tmp_path):
    """Searches, /ready's probe and opening fail as StoreUnavailable; `drop` keeps the table in pending.json, and `gc` removes it later."""
    server, client, url = bucket
    with Collection(tmp_path / "shop", create=True) as shop:
        shop.build(BASE, shelf["data"], store="lancedb", url=url, modalities=["image"], quiet=True)
        shop.promote("v1")
        shop.build(OTHER, quiet=True)
        kept = tables(client)
        right = shop.search(text="a red square", k=5).results
        store = shop.open("v1").stores["image"]
        server.stop()
        for outage in (
            lambda: shop.search(text="a red square", k=5),
            store.probe,
            lambda: store.fetch(["0-001"]),
            lambda: open_store(shop.layout.store_location("v1", "image", shop.layout.record("v1")["store"])),
        ):
            with pytest.raises(StoreUnavailable, match=r"^s3://shop/indexes/shop_\w+_v1_image: ") as error:
                outage()
            assert "\n" not in str(error.value) and ".rs:" not in str(error.value)
        pending = shop.drop("v2").pending
        assert len(pending) == 1 and "S3" in pending[0]
        server.start()
        assert shop.search(text="a red square", k=5).results == right  # by itself
        with pytest.raises(DataError, match="no such LanceDB table") as error:
            open_store(shop.layout.store_location("v7", "image", shop.layout.record("v1")["store"]))
        assert not isinstance(error.value, StoreUnavailable)
        if kept <= tables(client):  # moto keeps its buckets in memory; a restart may have emptied them
            assert len(shop.maintenance.gc().stores) == 1
            assert tables(client) == {t for t in kept if "_v1_" in t}
