"""A collection in every store: the same results, updates, refusals and rollbacks."""

import os

import numpy as np
import pytest

from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.demo.catalog import write_catalog
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import ModelError
from mmtune.index.collection import Collection
from mmtune.index.item_vectors import fill_store
from mmtune.index.stores import create_store
from mmtune.model.artifact import load
from mmtune.model.prompts import QUERY
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order
from tests.support.index_helpers import BASE, OTHER, again, coll_fixture, row, shelf_fixture  # noqa: F401
from tests.support.store_helpers import KINDS, postgres


def use_collection(path, data, kind, url, reference):
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
        coll.pool.verify(coll.open(version), all_vectors=True)
    store = coll.open("v2").stores["image"]
    wrong = -store.fetch(["n"])
    store.upsert(["n"], wrong, [{}])  # behind our back
    outcome = coll.promote("v2", force=True, why="x")
    assert not outcome["promoted"] and "something else wrote into the store" in outcome["reasons"][0]
    store.upsert(["n"], -wrong, [{}])
    assert coll.promote("v2", force=True, why="x")["promoted"] and coll.drop("v1") == {"dropped": "v1", "pending": []}
    coll.close()
    assert again(coll).search(text="x", k=1).version == "v2"
    of_another_version(path, kind)


def of_another_version(path, kind):
    """A table or directory of v3 comes back under v2's name, from a backup or by a script: with its stamp, and without."""
    with Collection(path) as coll:
        assert coll.build(BASE, quiet=True)["version"] == "v3"
        three, two = (coll.layout.record(v)["fingerprint"] for v in ("v3", "v2"))
        where = coll.layout.store_location("v2", "image", coll.layout.record("v2")["store"])

    def put(stamp, vectors):
        with Collection(path) as coll:
            store = create_store(where, 64, stamp)
            fill_store(store, coll.vector_cache(vectors, 64), coll.catalog.changed(0), "image")
            store.build("flat")
            store.close()

    for stamp, match in (
        (three, "image store holds vectors of 64 dimensions by mm3-.*the model of v3"),
        (two, "24 of 24 stored vectors"),
    ):
        put(stamp, three)
        with Collection(path) as coll, pytest.raises(ModelError, match=match):
            coll.search(text="a red square")
    put(two, two)
    with Collection(path) as coll:
        assert coll.search(text="x", k=1).version == "v2"


@pytest.mark.parametrize("kind", ["lancedb", "qdrant", "qdrant-edge"])
def test_embedded(kind, coll, shelf, tmp_path):
    pytest.importorskip({"lancedb": "lancedb", "qdrant": "qdrant_client", "qdrant-edge": "qdrant_edge"}[kind])
    use_collection(tmp_path / "other", shelf["data"], kind, None, coll)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_postgres_whose_url_no_file_holds(coll, shelf, tmp_path, monkeypatch):
    pytest.importorskip("psycopg"), pytest.importorskip("pgserver")
    with postgres() as url:
        monkeypatch.setenv("SHOP_DB", url)
        use_collection(tmp_path / "other", shelf["data"], "pgvector", "env:SHOP_DB", coll)
        for folder, _, files in os.walk(tmp_path / "other"):
            for name in files:
                assert url.encode() not in open(os.path.join(folder, name), "rb").read()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Packed photos of 16 products that differ in a detail, their vectors, the captions, and the captions' query vectors."""
    root = tmp_path_factory.mktemp("catalog")
    write_catalog(root / "source", seed=3, skus=16, train_per_sku=1, val_per_sku=3, base_per_kind=1)
    pack(root / "source/val.csv", root / "data")
    rows, model = open_data(str(root / "data")), load("tiny:all@3")
    photos = embed_data(model, rows, ["image"])["image"]
    words = [rows.read(i, "text").decode() for i in range(len(rows))]
    return root, rows, photos, words, np.stack([model.encode(text=w, role=QUERY) for w in words])


@pytest.mark.parametrize("kind", KINDS)
def test_flat_results_are_those_of_exact_search_over_the_catalog(kind, catalog, tmp_path):
    """Ids, order and scores, of every description, with and without a filter."""
    root, rows, photos, captions, queries = catalog
    needs = {
        "lancedb": ["lancedb"],
        "pgvector": ["psycopg", "pgserver"],
        "qdrant": ["qdrant_client"],
        "qdrant-edge": ["qdrant_edge"],
    }
    for module in needs.get(kind, []):
        pytest.importorskip(module)
    with postgres() if kind == "pgvector" else open(os.devnull) as url, Collection(tmp_path / "c", create=True) as coll:
        place = {"url": url} if kind == "pgvector" else {}
        coll.build("tiny:all@3", rows, store=kind, index="flat", quiet=True, **place)
        coll.promote("v1")
        for where, keep in ((None, lambda m: True), ("category = 'shirt'", lambda m: m["category"] == "shirt")):
            at = [i for i in range(len(rows)) if keep(rows.meta(i))]
            assert 10 < len(at) <= 48
            ids = [photos.ids[i] for i in at]
            scores, best = topk(queries, photos.vectors[at], 10, order=tie_order(ids))
            for row, (s, found) in enumerate(zip(scores, best, strict=True)):
                got = coll.search(text=captions[row], k=10, where=where).results
                assert [(r["id"], r["score"]) for r in got] == [(ids[j], float(x)) for j, x in zip(found, s, strict=True)]
