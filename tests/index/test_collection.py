"""A collection: build, search, upsert, delete, the item catalog, and the `index` verb."""

import json
import shutil

import numpy as np
import pytest

from mmtune.cli import index_output, main
from mmtune.contracts import Row
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, ModelError
from mmtune.index import item_vectors
from mmtune.index.collection import Collection
from mmtune.index.collection_results import SearchResult
from mmtune.index.query.group_results import best_groups, first_per_group
from mmtune.index.release.cost import CostEstimate, ModalityCost
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order
from tests.support.corpora import packed
from tests.support.index_helpers import BASE, COLUMNS, OTHER, again, blocks, coll_fixture, picture, row, shelf_fixture  # noqa: F401


def expected(model, data, caption, k):
    """The exact answer, from the embedding path alone."""
    from mmtune.model.artifact import load

    loaded = load(model)
    items = embed_data(loaded, open_data(data), ["image"])["image"]
    order = tie_order(items.ids)
    scores, at = topk(loaded.encode(text=[caption], role="query"), items.vectors, k, order=order)
    return [(items.ids[j], float(s)) for s, j in zip(scores[0], at[0], strict=True)]


def test_a_search_answers_as_exact_search_over_the_embedding_path_does(coll, shelf):
    for version, model in (("v1", BASE), ("v2", OTHER)):
        answer = coll.search(text="a red square", k=7, version=version)
        assert [(r["id"], r["score"]) for r in answer.results] == expected(model, shelf["data"], "a red square", 7)
        assert answer.version == version and answer.fingerprint == coll.layout.record(version)["fingerprint"]
    assert coll.search(text="a red square").version == coll.live == "v1"


def test_the_first_version_waits_for_promotion_too(shelf, tmp_path):
    with Collection(tmp_path / "new", create=True) as coll:
        done = coll.build(BASE, shelf["data"], quiet=True)
        assert done["version"] == "v1" and done["items"] == 24 and done["live"] is None and "promote" in done["next"]
        with pytest.raises(DataError, match="no version is live; promote one of v1"):
            coll.search(text="x")
        assert coll.search(text="x", version="v1").version == "v1"
    with pytest.raises(DataError, match="not a collection"):
        Collection(tmp_path / "nothing")


def test_every_kind_of_query(coll, shelf):
    data = open_data(shelf["data"])
    value = data.read(3, "image")
    first = coll.search(image=value, k=3)
    assert first.ids[0] == data.ids[3] and first.results[0]["score"] > 0.9999
    assert first.results[0]["group"] == data.groups[3] and first.results[0]["meta"] == data.meta(3)
    like = coll.search(item=data.ids[3], k=3)
    assert data.ids[3] not in like.ids and like.ids[:2] == first.ids[1:]
    dark = coll.search(text="a red square", where="shade = 'dark'", k=30)
    assert len(dark.ids) == 12 and all(r["meta"]["shade"] == "dark" for r in dark.results)
    assert {r["group"] for r in coll.search(text="x", where="group in ('red', 'blue')", k=30).results} == {"red", "blue"}
    both = coll.search(text="yellow", hybrid=True, k=4)
    assert "yellow" in {r["group"] for r in both.results} and all({"score", "similarity"} <= set(r) for r in both.results)
    for wrong, message in (
        ({}, "exactly one query"),
        ({"text": "a", "item": "b"}, "exactly one query"),
        ({"item": "nobody"}, "no item 'nobody'"),
        ({"audio": b"x"}, "no audio tower"),
        ({"image": b"not a picture"}, "the query's image"),
        ({"text": "a", "target": ["text"]}, "no index of text"),
        ({"text": "a", "where": "shade ="}, "filter: position 8"),
        ({"text": "a", "version": "v9"}, "no version 'v9'"),
        ({"text": "a", "version": "../v1"}, "is not a version name"),
    ):
        with pytest.raises((DataError, ModelError), match=message):
            coll.search(**wrong)


def first_of_each(results, of):
    """The first result of every value, by a plain loop."""
    earlier = []
    return [r["id"] for r in results if of(r) not in earlier and not earlier.append(of(r))]


def test_one_result_per_group(coll, shelf):
    """k counts groups; each is its best item, as if everything had been ranked and the rest of its items struck out."""
    ranked = coll.search(text="a red square", k=50).results
    for k in (1, 2, 4):
        found = coll.search(text="a red square", k=k, group_by="group")
        assert found.ids == first_of_each(ranked, lambda r: r["group"])[:k]
    assert coll.search(text="a red square", k=9, group_by="shade").ids == first_of_each(ranked, lambda r: r["meta"]["shade"])
    dark = coll.search(text="a red square", k=50, group_by="group", where="shade = 'dark'").results
    assert {r["meta"]["shade"] for r in dark} == {"dark"} and len({r["group"] for r in dark}) == len(dark)
    data = open_data(shelf["data"])
    like = coll.search(item=data.ids[3], k=50, group_by="group").results
    assert {r["group"] for r in like} == {*data.groups} - {data.groups[3]} and len(like) == len(set(data.groups)) - 1
    assert len({r["group"] for r in coll.search(text="red", hybrid=True, group_by="group", k=3).results}) == 3
    with pytest.raises(DataError, match="group_by 'shad': none of the items found has it; they have group, shade"):
        coll.search(text="x", group_by="shad")


def test_a_group_with_many_items_does_not_crowd_out_the_others():
    meta = {"none": "", "n": [1]}
    line = [SearchResult(str(i), 0.5, "image", "many" if i < 90 else f"g{i}", meta) for i in range(1000)]
    depths = []

    def search(depth):
        depths.append(depth)
        return line[:depth]

    assert [r["id"] for r in best_groups(search, 5, "group")] == ["0", "90", "91", "92", "93"] and depths == [20, 100]
    assert [r["id"] for r in best_groups(search, 2, "group", "many")] == ["90", "91"] and depths[2:] == [8, 40, 200]
    assert [r["id"] for r in best_groups(search, 3, "n")] == ["0"]  # 300 items were looked at, and no more
    alone = SearchResult("x", 0.5, "image", None, {})
    assert [r["id"] for r in first_per_group([*line[88:91], alone, alone], "group")] == ["88", "90", "x", "x"]
    with pytest.raises(DataError, match="they have group, n"):
        first_per_group(line, "none")


def test_a_query_is_encoded_once_per_model(coll, monkeypatch):
    calls = []
    import mmtune.index.open_version as opened

    real = opened.encode_batches
    monkeypatch.setattr(opened, "encode_batches", lambda *a: calls.append(len(a[2])) or real(*a))
    first = coll.search(text="a blue square")
    assert coll.search(text="a blue square").results == first.results
    coll.search(text="a blue square", version="v2")
    assert [c for c in calls if c] == [1, 1]


def test_upserts_and_deletes_reach_every_version(coll, shelf):
    new = row("new", "blue", 99, shade="dark", price=3)
    done = coll.upsert([new, row("0-000", "black", 98), Row("bad", None, {"image": b"broken"}), Row("empty", None, {})])
    assert (done["new"], done["changed"], done["same"], done["behind"]) == (1, 1, 0, {})
    assert [r["id"] for r in done["rejected"]] == ["bad", "empty"] and "image" in done["rejected"][0]["reason"]
    for reader in (coll, again(coll)):
        for version in ("v1", "v2"):
            found = reader.search(image=new.values["image"], k=1, version=version).results[0]
            assert (found["id"], found["group"], found["meta"]) == ("new", "blue", {"shade": "dark", "price": 3})
            assert reader.search(image=picture("black", 98), k=1, version=version).ids == ["0-000"]
    assert coll.upsert([new])["same"] == 1
    assert coll.delete(["new", "0-001", "never"]) == {"deleted": 2, "unknown": 1, "behind": {}}
    for version in ("v1", "v2"):
        ids = coll.search(text="x", k=50, version=version).ids
        assert len(ids) == 23 == len(set(ids)) and not {"new", "0-001"} & set(ids)
    assert coll.value("0-000", "image") == picture("black", 98) and coll.value("new", "image") is None
    assert coll.value("0-002", "text") == b"a blue square" and coll.value("0-002", "audio") is None
    for version in ("v1", "v2"):
        coll.pool.verify(coll.open(version), all_vectors=True)
    assert coll.upsert(shelf["data"])["new"] == 1  # 0-001 comes back


def test_a_new_model_embeds_what_the_collection_has_by_now(coll):
    coll.upsert([row("new", "blue", 99)])
    coll.delete(["0-001"])
    done = coll.build("tiny:clip@3", quiet=True)
    assert done["version"] == "v3" and done["items"] == 24 and done["embedded"] == 24
    assert set(coll.search(text="x", k=50, version="v3").ids) == set(coll.search(text="x", k=50).ids) and coll.live == "v1"
    same = coll.build("tiny:clip@3", index="hnsw", quiet=True)
    assert (same["version"], same["embedded"], same["reused"]) == ("v4", 0, 24) and same["index"]["image"]["index"] == "hnsw"
    assert coll.search(text="x", version="v4").results == coll.search(text="x", version="v3").results
    assert coll.drop("v4") == {"dropped": "v4", "pending": []} and coll.build("tiny:clip@3", quiet=True)["version"] == "v5"
    with pytest.raises(DataError, match="v1 is live"):
        coll.drop("v1")


def test_new_data_in_a_build_reach_the_versions_that_there_are(coll, shelf):
    more = packed(shelf["root"], 30, 2, COLUMNS)
    done = coll.build(OTHER, more, prune=True, quiet=True)
    assert done["loaded"]["new"] == 30 and done["loaded"]["deleted"] == 24 and done["items"] == 30
    assert sorted(coll.search(text="x", k=99).ids) == sorted(open_data(more).ids)


def test_an_interrupted_build_embeds_nothing_twice_and_publishes_nothing_half(coll, monkeypatch):
    monkeypatch.setattr(item_vectors, "BLOCK", 5)
    mark = None

    class Killed(BaseException):
        pass

    real, count = item_vectors.embed_rows, []

    def embed_rows(*a, **options):
        count.append(len(a[3]))
        if len(count) == 3:
            raise Killed
        return real(*a, **options)

    monkeypatch.setattr(item_vectors, "embed_rows", embed_rows)
    with pytest.raises(Killed):
        coll.build("tiny:clip@5", quiet=True)
    assert coll.layout.versions() == ["v1", "v2"]
    done = again(coll).build("tiny:clip@5", quiet=True)
    mark = done["fingerprint"]
    assert done["version"] == "v3" and done["embedded"] == 14 and done["reused"] == 10 and blocks(coll, mark) == (24, 24)
    assert sum(count) == 24 + 5  # the block that was being made is made again


def test_shards_that_changed_are_refused(shelf, tmp_path):
    data = shutil.copytree(shelf["data"], tmp_path / "data")
    with Collection(tmp_path / "coll", create=True) as coll:
        coll.build(BASE, str(data), quiet=True)
        shutil.rmtree(data)
        shutil.copytree(packed(shelf["root"], 24, 0, ("image",)), data)  # other ids' rows would do as well
        other = packed(shelf["root"], 24, 5, COLUMNS)
        shutil.rmtree(data)
        shutil.copytree(other, data)
        with Collection(tmp_path / "coll") as fresh, pytest.raises(DataError, match="not what the collection read there"):
            fresh.build(OTHER, quiet=True)


def test_blocks_are_merged_without_losing_a_vector(tmp_path):
    from mmtune.index.vector_cache import VectorCache

    held, rng = VectorCache(tmp_path, "f", 4), np.random.default_rng(0)
    all_keys, all_vectors = rng.permutation(200), rng.normal(size=(200, 4)).astype(np.float32)
    for start in range(0, 200, 10):
        held.write("image", all_keys[start : start + 10], all_vectors[start : start + 10])
    reader = VectorCache(tmp_path, "f", 4)
    assert np.array_equal(reader.read("image", all_keys), all_vectors)
    held.merge("image")
    assert len(list(tmp_path.glob("image/*"))) == 1
    for some in (held, reader):
        assert np.array_equal(some.read("image", all_keys[::3]), all_vectors[::3])
    assert held.missing("image", np.array([5, 1000])).tolist() == [False, True]


def run(capsys, *argv):
    status = main(["index", *map(str, argv), "--json"])
    out = capsys.readouterr()
    return status, json.loads(out.out) if out.out else None, out.err


def test_the_verb(shelf, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MMTUNE_USER", "ada")
    place, data = tmp_path / "c", shelf["data"]
    status, done, _ = run(capsys, "build", place, "--model", BASE, "--data", data, "--quiet")
    assert status == 0 and done["version"] == "v1" and done["items"] == 24 and done["fingerprint"].startswith("mm3-")
    assert run(capsys, "search", place, "--text", "x")[0] == 2
    assert run(capsys, "promote", place, "v1")[1]["promoted"]
    status, found, _ = run(capsys, "search", place, "--text", "a red square", "-k", 3, "--filter", "shade = 'light'")
    assert (
        status == 0 and found["version"] == "v1" and len(found["results"]) == 3 and {"id", "score"} <= set(found["results"][0])
    )
    (tmp_path / "q.png").write_bytes(picture("green", 5))
    each = run(capsys, "search", place, "--text", "a red square", "--per", "group")[1]["results"]
    assert len({r["group"] for r in each}) == len(each) > 1
    assert run(capsys, "search", place, "--text", "a red square", "--per", "colour")[0] == 2
    by_file = run(capsys, "search", place, "--file", tmp_path / "q.png")[1]["results"]
    assert by_file == run(capsys, "search", place, "--image", tmp_path / "q.png")[1]["results"]
    assert run(capsys, "search", place, "--id", by_file[0]["id"])[1]["results"][0]["id"] != by_file[0]["id"]
    assert run(capsys, "build", place, "--model", OTHER, "--quiet")[1]["version"] == "v2"
    status, done, _ = run(capsys, "promote", place, "v2")
    assert status == 1 and not done["promoted"] and "--queries" in done["reasons"][0]
    assert run(capsys, "promote", place, "v2", "--force")[0] == 2
    assert run(capsys, "promote", place, "v2", "--force", "--why", "trial")[0] == 0
    assert run(capsys, "rollback", place, "--why", "worse")[1]["version"] == "v1"
    assert run(capsys, "rollback", place)[0] == 2
    status, document, _ = run(capsys, "status", place)
    assert document["live"] == "v1" and [v["version"] for v in document["versions"]] == ["v1", "v2"]
    lines = run(capsys, "journal", place)[1]["journal"]
    events = [(x["what"], x["version"], x["who"], x["why"]) for x in lines if x["what"] in ("promote", "rollback", "refused")]
    assert events == [
        ("promote", "v1", "ada", None),
        ("refused", "v2", "ada", None),
        ("promote", "v2", "ada", "trial"),
        ("rollback", "v1", "ada", "worse"),
    ]
    assert run(capsys, "delete", place, "0-000", "0-001")[1]["deleted"] == 2
    assert run(capsys, "upsert", place, "--data", data)[1]["new"] == 2
    status, planned, _ = run(capsys, "plan", "--model", BASE, "--data", data, "--items", 10**6, "--price-per-hour", 2)
    assert planned["items"] == 10**6 and planned["hours"] > 0 and planned["bytes"] > 2 * 10**6 * 64 * 4 and planned["price"] > 0
    status, planned, _ = run(capsys, "plan", place, "--model", BASE)  # the collection's own items, all known
    assert planned["items"] == 24 and planned["by_modality"]["image"]["known"] == 24 and planned["hours"] == 0
    status, planned, _ = run(capsys, "plan", place, "--model", "tiny:clip@5")
    assert planned["by_modality"]["image"]["known"] == 0 and planned["hours"] > 0
    by = {m: ModalityCost(**x) for m, x in planned["by_modality"].items()}
    changed = {"hours": 1 / 60, "bytes": 2**21, "price": 0.5, "price_per_hour": 30, "by_modality": by}
    lines = index_output.plan(CostEstimate(**planned | changed))
    assert lines.splitlines()[0] == "24 items: 1.0 min, 2.0 MiB, price 0.50 at 30 per hour"
    for argv in (["status", place], ["journal", place], ["search", place, "--text", "x"]):
        assert main(["index", *map(str, argv)]) == 0
        out = capsys.readouterr().out
        assert "v1" in out
        if argv[0] == "journal":
            assert "refused    v2    another model than the live version" in out
            assert "promote    v2    before: v1; why: trial; forced over: another model" in out
    for wrong in (
        ["search", place],
        ["plan", "--model", BASE],
        ["search", place, "--file", "a.xyz"],
        ["status", tmp_path / "no"],
        ["nothing", place],
        ["drop", place, "v1"],
    ):
        status, _, err = run(capsys, *wrong)
        assert status == 2 and len(err.strip().splitlines()) == 1, err
