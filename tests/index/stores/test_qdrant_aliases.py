"""Named vectors and aliases of Qdrant: other clients of the server find the live version under one name, with the vector that they ask for."""

import http.server
import json
import threading

import numpy as np
import pytest

import mmtune
from mmtune.errors import DataError, StoreUnavailable
from mmtune.index.adopt.adopt import adopt
from mmtune.index.adopt.qdrant_source import QdrantSource
from mmtune.index.collection import Collection
from mmtune.index.stores import StoreLocation, create_store, open_store
from mmtune.index.stores.qdrant_connections import SharedClient, parse_options
from mmtune.model.prompts import QUERY
from mmtune.search.exact import topk
from tests.support.index_helpers import BASE, OTHER, again, row, shelf_fixture  # noqa: F401
from tests.support.store_helpers import unit_rows

qdrant_client = pytest.importorskip("qdrant_client")
models = qdrant_client.models
DIM = 16


class OtherClient:
    """Another client of the same Qdrant: it knows the alias and the name of the vectors, and nothing of mmtune."""

    def __init__(self, url: str):
        self.shared = SharedClient.acquire(url)

    def __enter__(self):
        with self.shared.use("another client") as client:
            return client

    def __exit__(self, *error: object) -> None:
        self.shared.release()


def test_options_stand_in_the_url():
    found = parse_options("http://h:6333/prefix?a=b&mmtune_alias=caf%C3%A9&mmtune_vector=photo")
    assert (found.url, found.alias, found.vector) == ("http://h:6333/prefix?a=b", "café", "photo")
    found = parse_options("/data/q?mmtune_alias=items")
    assert (found.url, found.alias, found.vector) == ("/data/q", "items", None)
    assert parse_options("/data/what?").url == "/data/what?"
    with pytest.raises(DataError, match="no option mmtune_aliass; choose from mmtune_alias, mmtune_vector"):
        parse_options("http://h?mmtune_aliass=x")
    with pytest.raises(DataError, match="mmtune_alias is empty in the url; name the alias"):
        parse_options("http://h?mmtune_alias=")


@pytest.mark.parametrize("vector", [None, "photo"])
def test_a_store_with_named_vectors_is_what_other_clients_ask_for(tmp_path, vector):
    url = str(tmp_path / "q") + ("" if vector is None else f"?mmtune_vector={vector}")
    at = StoreLocation("qdrant", tmp_path, url, "shop_v1_a")
    ids, vectors = [f"i{k}" for k in range(60)], unit_rows(np.random.default_rng(0), 60, DIM)
    queries = unit_rows(np.random.default_rng(1), 5, DIM)
    store = create_store(at, DIM, "f")
    store.upsert(ids, vectors, [{"n": k} for k in range(60)])
    store.close()
    store = open_store(
        StoreLocation("qdrant", tmp_path, str(tmp_path / "q"), "shop_v1_a")
    )  # the collection says the name itself
    scores, best = topk(queries, vectors, 5)
    assert [[h.id for h in hits] for hits in store.search(queries, 5)] == [[ids[i] for i in r] for r in best]
    np.testing.assert_array_equal(store.fetch(ids[::-1]), vectors[::-1])
    with OtherClient(str(tmp_path / "q")) as client:
        for q, want, s in zip(queries, best, scores, strict=True):
            points = client.query_points("shop_v1_a", query=q.tolist(), using=vector, limit=5).points
            assert [p.payload["id"] for p in points] == [ids[i] for i in want]
            np.testing.assert_allclose([p.score for p in points], s, atol=1e-6)
        named = client.get_collection("shop_v1_a").config.params.vectors
        assert (list(named) if vector else named.size) == (["photo"] if vector else DIM)
    store.delete(ids[:10])
    assert len(store) == 50 and sorted(store.ids()) == sorted(ids[10:])
    store.drop()
    store.close()


def found(client, query_D, k=50, using="photo"):
    return [p.payload["id"] for p in client.query_points("items", query=query_D.tolist(), using=using, limit=k).points]


def target(client):
    return {a.alias_name: a.collection_name for a in client.get_aliases().aliases}


def query_of(coll, version, text):
    return coll.open(version).model.encode(text=text, role=QUERY)


def test_an_alias_follows_promotions_rollbacks_and_repairs(shelf, tmp_path):
    url = f"{tmp_path / 'q'}?mmtune_alias=items&mmtune_vector=photo"
    with OtherClient(str(tmp_path / "q")) as client, Collection(tmp_path / "shop", create=True) as coll:
        coll.build(BASE, shelf["data"], store="qdrant", url=url, modalities=["image"], quiet=True)
        name = {v: f"shop_{coll.layout.manifest['uid']}_{v}_image" for v in ("v1", "v2")}
        assert target(client) == {}  # a build changes nothing for others
        coll.promote("v1")
        assert target(client) == {"items": name["v1"]}
        assert found(client, query_of(coll, "v1", "a red square")) == coll.search(text="a red square", k=50).ids
        coll.build(OTHER, quiet=True)
        assert target(client) == {"items": name["v1"]}
        assert not coll.promote("v2").promoted and target(client) == {"items": name["v1"]}  # refused: no queries
        coll.promote("v2", force=True, why="a test")
        assert target(client) == {"items": name["v2"]}
        assert found(client, query_of(coll, "v2", "a red square")) == coll.search(text="a red square", k=50).ids
        coll.upsert([row("new", "red", 5)])
        assert "new" in found(client, query_of(coll, "v2", "x"))
        coll.rollback()
        assert target(client) == {"items": name["v1"]} and "new" in found(client, query_of(coll, "v1", "x"))
        client.update_collection_aliases([models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="items"))])
        assert coll.promote("v1").reasons == ["v1 is live already"] and target(client) == {"items": name["v1"]}
        client.delete(name["v1"], points_selector=models.FilterSelector(filter=models.Filter()))  # behind our back
        assert again(coll).maintenance.repair().left == [] and target(client) == {"items": name["v1"]}
        assert len(found(client, query_of(coll, "v1", "x"))) == 25


def test_a_promotion_killed_between_alias_and_pointer_is_finished_by_repeating_it(shelf, tmp_path, monkeypatch):
    url = f"{tmp_path / 'q'}?mmtune_alias=items"
    with OtherClient(str(tmp_path / "q")) as client, Collection(tmp_path / "shop", create=True) as coll:
        coll.build(BASE, shelf["data"], store="qdrant", url=url, modalities=["image"], quiet=True)
        coll.promote("v1")
        coll.build(BASE, quiet=True)
        uid, set_live = coll.layout.manifest["uid"], type(coll.layout).set_live
        monkeypatch.setattr(type(coll.layout), "set_live", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            coll.promote("v2")
        monkeypatch.setattr(type(coll.layout), "set_live", set_live)
        assert coll.live == "v1" and target(client) == {"items": f"shop_{uid}_v2_image"}
        again = coll.promote("v2", max_slowdown=1000)  # the machine may be busy
        assert again.promoted and coll.live == "v2" and target(client) == {"items": f"shop_{uid}_v2_image"}
        monkeypatch.setattr(type(coll.layout), "set_live", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            coll.rollback()
        monkeypatch.setattr(type(coll.layout), "set_live", set_live)
        assert coll.rollback().version == "v1" and target(client) == {"items": f"shop_{uid}_v1_image"}


def test_an_alias_for_each_modality(shelf, tmp_path):
    with OtherClient(str(tmp_path / "q")) as client, Collection(tmp_path / "shop", create=True) as coll:
        build = {"store": "qdrant", "modalities": ["image", "text"], "quiet": True}
        with pytest.raises(
            DataError, match=r"the alias items in the store's url cannot name the indexes of image, text; write items_\{m"
        ):
            coll.build(BASE, shelf["data"], url=f"{tmp_path / 'q'}?mmtune_alias=items", **build)
        coll.build(BASE, url=f"{tmp_path / 'q'}?mmtune_alias=items_{{modality}}&mmtune_vector={{modality}}", **build)
        coll.promote("v1")
        uid = coll.layout.manifest["uid"]
        assert target(client) == {f"items_{m}": f"shop_{uid}_v1_{m}" for m in ("image", "text")}
        assert list(client.get_collection("items_text").config.params.vectors) == ["text"]


def test_a_collection_of_the_aliass_name_is_refused_before_anything_is_written(shelf, tmp_path):
    with OtherClient(str(tmp_path / "q")) as client, Collection(tmp_path / "shop", create=True) as coll:
        client.create_collection("items", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
        with pytest.raises(DataError, match="mmtune_alias=items: a Qdrant collection has this name, so it cannot be an alias"):
            coll.build(BASE, shelf["data"], store="qdrant", url=f"{tmp_path / 'q'}?mmtune_alias=items", quiet=True)
        assert [c.name for c in client.get_collections().collections] == ["items"] and not coll.layout.versions()


def test_a_collection_that_others_wrote_is_adopted_and_its_alias_follows(shelf, tmp_path):
    """Clients that ask the alias `items` for the vectors `caption` need no change: before, with v1, with v2 and after a rollback."""
    where = str(tmp_path / "q")
    texts = ["a red square", "a blue circle", "a green triangle", "a yellow star"]
    vectors = mmtune.load(BASE).encode(texts)
    sizes = {"caption": vectors.shape[1], "other": 3}
    with OtherClient(where) as client:
        vector = {n: models.VectorParams(size=d, distance=models.Distance.COSINE) for n, d in sizes.items()}
        client.create_collection("things_2024", vectors_config=vector)
        client.upsert(
            "things_2024",
            [
                models.PointStruct(
                    id=i, vector={"caption": v.tolist(), "other": [1.0, 0, 0]}, payload={"id": f"k{i}", "title": t}
                )
                for i, (t, v) in enumerate(zip(texts, vectors, strict=True))
            ],
        )
        create = models.CreateAlias(collection_name="things_2024", alias_name="items")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
        before = found(client, vectors[1], using="caption")
        assert before[0] == "k1" and len(before) == 4
    url = f"{where}?mmtune_alias=items&mmtune_vector=caption"
    with Collection(tmp_path / "shop", create=True) as coll:
        options = {"source": "qdrant", "table": "items", "modality": "text", "vector": "caption", "id": "id"}
        done = adopt(coll, BASE, url=url, content="title", **options)
        assert (done.adopted, done.embedded, done.skipped) == (4, 0, {})
        with OtherClient(where) as client:
            assert target(client) == {"items": "things_2024"}
            coll.promote("v1")
            v1 = target(client)["items"]
            assert v1.endswith("_v1_text") and found(client, vectors[1], using="caption") == before
            coll.build(OTHER, quiet=True)
            coll.promote("v2", force=True, why="a test")
            assert target(client)["items"].endswith("_v2_text")
            assert found(client, query_of(coll, "v2", texts[2]), using="caption")[0] == "k2"
            coll.rollback()
            assert target(client)["items"] == v1 and found(client, vectors[1], using="caption") == before
            assert client.count("things_2024").count == 4  # only read


class Answers(http.server.BaseHTTPRequestHandler):
    """Records requests, and refuses those without the API key as a Qdrant server does."""

    seen: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("api-key")
        self.seen.append((self.path.partition("?")[0], key))
        point = {"id": 7, "vector": {"photo": [3.0, 4.0]}, "payload": {"title": "boot"}}
        body = json.dumps({"result": {"points": [point], "next_page_offset": None}, "status": "ok", "time": 0.0}).encode()
        self.send_response(200 if key == "secret" else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_is_read_with_its_api_key(monkeypatch):
    Answers.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        monkeypatch.setenv("QDRANT_API_KEY", "secret")
        (rows,) = QdrantSource(f"{url}?mmtune_alias=items", "items", "photo", None).rows()
        assert rows.ids == ["7"] and rows.vectors.tolist() == [[3, 4]] and rows.payloads == [{"title": "boot"}]
        monkeypatch.delenv("QDRANT_API_KEY")
        with pytest.raises((DataError, StoreUnavailable), match="401"):
            list(QdrantSource(url, "items", "photo", None).rows())
    finally:
        server.shutdown()
        server.server_close()
    assert Answers.seen == [("/collections/items/points/scroll", "secret"), ("/collections/items/points/scroll", None)]
