"""The same life of a collection in every store: the same answers, the same updates, the same way back."""

import os

import pytest

from mmtune.lifecycle.collection import Collection
from tests.lifecycle_helpers import BASE, OTHER, again, coll_fixture, row, shelf_fixture  # noqa: F401
from tests.store_helpers import postgres


def life(path, data, kind, url, reference):
    coll = Collection(path, create=True)
    assert coll.build(BASE, data, store=kind, url=url, quiet=True)["store"] == kind and coll.promote("v1")["promoted"]
    for words in ("a red square", "something blue"):
        got, want = coll.search(text=words, k=6), reference.search(text=words, k=6)
        assert got.results == want.results
    assert coll.build(OTHER, quiet=True)["store"] == kind  # as the newest version
    assert coll.promote("v2", force=True, why="x")["promoted"] and coll.rollback()["version"] == "v1"
    coll.upsert([row("n", "red", 5, shade="odd")])
    coll.delete(["0-001"])
    coll.close()
    coll = Collection(path)
    for version in ("v1", "v2"):
        ids = coll.search(text="x", k=50, version=version).ids
        assert len(ids) == 24 and "n" in ids and "0-001" not in ids
        assert coll.search(text="x", where="group = 'red' and shade = 'odd'", version=version).ids == ["n"]
        coll.check(coll.open(version), every=True)
    store = coll.open("v2").stores["image"]
    wrong = -store.fetch(["n"])
    store.upsert(["n"], wrong, [{}])  # behind our back
    said = coll.promote("v2", force=True, why="x")
    assert not said["promoted"] and "something else wrote into the store" in said["reasons"][0]
    store.upsert(["n"], -wrong, [{}])
    assert coll.promote("v2", force=True, why="x")["promoted"] and coll.drop("v1") == {"dropped": "v1"}
    coll.close()
    assert again(coll).search(text="x", k=1).version == "v2"


@pytest.mark.parametrize("kind", ["lancedb", "qdrant"])
def test_embedded(kind, coll, shelf, tmp_path):
    pytest.importorskip({"lancedb": "lancedb", "qdrant": "qdrant_client"}[kind])
    life(tmp_path / "other", shelf["data"], kind, None, coll)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_postgres_whose_url_no_file_holds(coll, shelf, tmp_path, monkeypatch):
    pytest.importorskip("psycopg"), pytest.importorskip("pgserver")
    with postgres() as url:
        monkeypatch.setenv("SHOP_DB", url)
        life(tmp_path / "other", shelf["data"], "pgvector", "env:SHOP_DB", coll)
        for folder, _, files in os.walk(tmp_path / "other"):
            for name in files:
                assert url.encode() not in open(os.path.join(folder, name), "rb").read()
