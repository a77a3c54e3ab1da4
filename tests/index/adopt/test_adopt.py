"""Vectors that other software wrote to PostgreSQL and Qdrant become v1, a tuned model becomes v2, and back."""

import json

import numpy as np
import pytest

import mmtune
from mmtune.cli import main
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, ModelError
from mmtune.index.adopt.adopt import adopt
from mmtune.index.adopt.vector_sources import VectorRows, usable_rows
from tests.support.index_helpers import BASE, shelf_fixture, tuned_fixture  # noqa: F401
from tests.support.store_helpers import postgres


@pytest.fixture(scope="module")
def database():
    pytest.importorskip("psycopg"), pytest.importorskip("pgserver")
    with postgres() as url:
        yield url


@pytest.fixture(scope="module")
def embedded(shelf):
    """The rows of the shelf, and their image vectors by plain use of the model."""
    data = open_data(shelf["data"])
    return data, embed_data(mmtune.load(BASE), data, ["image"])["image"]


def write_table(url: str, name: str, data, vectors, kind: str = "vector") -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as c:
        c.execute("CREATE EXTENSION IF NOT EXISTS vector")
        c.execute(f'DROP TABLE IF EXISTS "{name}"')
        c.execute(f'CREATE TABLE "{name}" (sku text PRIMARY KEY, emb {kind}({vectors.shape[1]}), price real, title text)')
        for i, (row, v) in enumerate(zip(data.ids, vectors, strict=True)):
            text = (
                None if i == 3 else "[" + ",".join(repr(float(x)) for x in 2.5 * v) + "]"
            )  # not normalised, one without a vector
            c.execute(f'INSERT INTO "{name}" VALUES (%s, %s, %s, %s)', (row, text, i + 0.5, f"thing {i}"))
        c.execute(f'INSERT INTO "{name}" VALUES (%s, %s, 1, %s)', ("gone", "[" + ",".join(["1"] * vectors.shape[1]) + "]", "x"))


def live_and_back(path, shelf, tuned, live_ids) -> None:
    """Promote the adopted version, build and promote one of a tuned model, and roll back."""
    with mmtune.Collection(path) as shop:
        assert shop.promote("v1")["promoted"]
        assert set(shop.search(text="a red square", k=len(live_ids)).ids) == set(live_ids)
        before = shop.search(text="a red square", k=5).ids
        built = shop.build(tuned, modalities=["image"], quiet=True)
        outcome = shop.promote(built.version, queries=shelf["held"], force=True, why="a test of the way, not of the gate")
        assert outcome["promoted"] and shop.live == "v2"
        shop.rollback()
        assert shop.live == "v1" and shop.search(text="a red square", k=5).ids == before
        assert [e["what"] for e in shop.journal() if e["what"] == "adopt"] == ["adopt"]


def test_a_postgresql_table(tmp_path, shelf, embedded, tuned, database, capsys):
    data, e = embedded
    write_table(database, "products", data, e.vectors)
    argv = ["index", "adopt", str(tmp_path / "coll"), "--model", BASE, "--from", "pgvector", "--url", database, "--table"]
    argv += ["public.products", "--modality", "image", "--data", shelf["data"], "--index", "flat", "--json", "--quiet"]
    assert main(argv) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["adopted"], done["embedded"], done["unknown"], done["skipped"]) == (23, 1, 1, {"no vector": 1})
    assert done["build"]["store"] == "pgvector" and done["build"]["index"]["image"]["index"] == "flat"
    with mmtune.Collection(tmp_path / "coll") as shop:
        stored = shop.open("v1").stores["image"].fetch(list(e.ids))
    np.testing.assert_allclose(stored, e.vectors, atol=2e-6)
    live_and_back(tmp_path / "coll", shelf, tuned, data.ids)
    assert main(argv) == 2 and "it has versions already" in capsys.readouterr().err


def test_a_qdrant_collection_with_named_vectors_and_payload(tmp_path, embedded):
    qdrant = pytest.importorskip("qdrant_client")
    data, e = embedded
    texts = [data.read(i, "text").decode() for i in range(len(data))]
    vectors = mmtune.load(BASE).encode(texts)
    client = qdrant.QdrantClient(path=str(tmp_path / "q"))
    size = {
        n: qdrant.models.VectorParams(size=d, distance=qdrant.models.Distance.COSINE)
        for n, d in (("v", vectors.shape[1]), ("w", 3))
    }
    client.create_collection("things", vectors_config=size)
    points = [
        qdrant.models.PointStruct(
            id=i, vector={"v": v.tolist(), "w": [1.0, 0, 0]}, payload={"caption": t, "price": i / 2, "key": f"k{i}"}
        )
        for i, (t, v) in enumerate(zip(texts, vectors, strict=True))
    ]
    client.upsert(
        "things", [*points, qdrant.models.PointStruct(id=999, vector={"v": vectors[0].tolist()}, payload={"key": "bare"})]
    )
    client.close()
    where = {"source": "qdrant", "url": str(tmp_path / "q"), "table": "things", "modality": "text", "content": "caption"}
    with mmtune.Collection(tmp_path / "coll", create=True) as shop:
        with pytest.raises(DataError, match=r"it has several vectors; name one with --vector: v, w"):
            adopt(shop, BASE, **where)
        done = adopt(shop, BASE, vector="v", id="key", **where)
        assert (done.adopted, done.embedded, done.skipped) == (24, 0, {"no readable content, e.g. 'bare'": 1})
        shop.promote("v1")
        found = shop.search(text=texts[5], k=24, where="price < 3")
        assert found.ids and all(int(i[1:]) < 6 for i in found.ids)


def test_vectors_of_another_model_are_refused(tmp_path, shelf, embedded, database):
    data, e = embedded
    where = {"source": "pgvector", "url": database, "table": "wrong", "modality": "image", "data": shelf["data"]}
    swapped = e.vectors.copy()
    swapped[[0, 1]] = swapped[[1, 0]] if not np.allclose(swapped[0], swapped[1]) else -swapped[[0, 1]]
    write_table(database, "wrong", data, swapped)
    with mmtune.Collection(tmp_path / "coll", create=True) as shop:
        with pytest.raises(ModelError, match=r"table wrong: 2 of 23 vectors are not what the model makes of their items"):
            adopt(shop, BASE, **where)
        assert not shop.layout.versions()
        write_table(database, "wrong", data, e.vectors[:, :5])
        with pytest.raises(ModelError, match="vectors of 5 dimensions; the model makes"):
            adopt(shop, BASE, **where)
        for bad, message in (
            ({"table": "nothing"}, "no such table in this database"),
            ({"vector": "price"}, "columns of type vector or halfvec: emb"),
            ({"id": "key"}, "name its column of ids with --id; its columns: sku, emb, price, title"),
            ({"source": "pgvectr"}, "pgvector"),
            ({"data": None}, "either --data DATA or --content COLUMN"),
        ):
            with pytest.raises(DataError, match=message):
                adopt(shop, BASE, **{**where, **bad})


def test_rows_without_a_usable_vector_are_counted():
    skipped: dict[str, int] = {}
    vectors = [[1.0, 2.0], [1.0], None, [0.0, 0.0], [float("nan"), 1.0], [3.0, 4.0], [1.0, 1.0]]
    got = usable_rows(["a", "b", "c", "d", "e", None, "g"], vectors, [{}] * 7, None, skipped)
    assert isinstance(got, VectorRows) and got.ids == ["a", "g"] and got.vectors.tolist() == [[1, 2], [1, 1]]
    assert skipped == {"vector of 1 numbers, not 2": 1, "no vector": 1, "vector of zeros, or not finite": 2, "no id": 1}
