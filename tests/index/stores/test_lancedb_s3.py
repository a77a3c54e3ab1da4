"""LanceDB in object storage: a collection from build to rollback in a bucket of a real S3 server (moto), and what happens when it is away."""

import pytest

from mmtune.index.collection import Collection
from tests.index.stores.test_collection_in_every_store import use_collection
from tests.support.index_helpers import BASE, OTHER, coll_fixture, row, shelf_fixture  # noqa: F401

pytest.importorskip("lancedb")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch):
    """(server, client, URL of a prefix in an empty bucket); the environment has what LanceDB needs to reach it."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
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
