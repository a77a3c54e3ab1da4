"""Erase: no byte of the item is left in any file, whatever was done to it before, and whenever the process was killed."""

import json
import os
import sqlite3

import numpy as np
import pytest

from mmtune.cli import main
from mmtune.contracts import Row
from mmtune.errors import DataError
from mmtune.index.collection import Collection
from mmtune.index.release.canaries import keep_canaries
from tests.support.index_driver import killed_at
from tests.support.index_helpers import again, coll_fixture, picture, row, shelf_fixture  # noqa: F401

ITEM = "customer-4711"


def with_item(coll):
    """A collection in which the item was upserted, replaced, clicked, searched for and named in a refusal."""
    for seed in (500, 501):
        new = Row(ITEM, "red", {"image": picture("red", seed)}, {"secret-column": f"secret-{seed}"})
        coll.upsert([new, row("customer-47111", "blue", 7)])
    found = coll.search(image=picture("red", 501), k=3)
    assert found.ids[0] == ITEM
    coll.feedback({"query": found.query, "item": ITEM, "kind": "click"})
    coll.feedback({"query": found.query, "item": "customer-47111", "kind": "click"})
    with coll.layout.lock():
        from mmtune.index import audit_log

        event = audit_log.event("refused", "v2", None, reasons=[f"different items, e.g. {ITEM!r}"])
        audit_log.append(coll.layout, event)
    return [picture("red", seed) for seed in (500, 501)]


def traces(root, contents, vectors):
    """Where any byte of it is, by a plain search of every file."""
    needles = [ITEM.encode() + b"'", ITEM.encode() + b'"', b"secret-500", b"secret-501", b"secret-column"]
    needles += [c[at : at + 40] for c in contents for at in (60, len(c) // 2, len(c) - 60)]
    needles += [v.tobytes()[:64] for v in vectors]
    files = [p for p in root.rglob("*") if p.is_file()]
    return sorted({str(p.relative_to(root)) for p in files for n in needles if n in p.read_bytes()})


def test_no_byte_is_left_and_the_proof_says_what_was_searched(coll, capsys):
    contents = with_item(coll)
    vectors = [coll.open(v).stores["image"].fetch([ITEM])[0] for v in ("v1", "v2")]
    assert len(traces(coll.path, contents, vectors)) >= 8
    coll.close()
    assert main(["index", "erase", str(coll.path), ITEM, "--why", "asked for it", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["erased"] and done["known"] and done["behind"] == {} and done["proof"]["found"] == []
    assert done["proof"]["files"] > 20 and done["proof"]["windows"] >= 9 and "v2 image (faiss)" in done["proof"]["looked_up"]
    assert traces(coll.path, contents, vectors) == []
    fresh = again(coll)
    for version in ("v1", "v2"):
        ids = fresh.search(text="x", k=50, version=version).ids
        assert len(ids) == 25 and ITEM not in ids and "customer-47111" in ids
        fresh.pool.verify(fresh.open(version), all_vectors=True)
    assert [e["item"] for e in fresh.feedback_log.events()] == ["customer-47111"]
    last = fresh.journal()[-1]
    assert (last["what"], last["why"], last["left"]) == ("erase", "asked for it", 0) and ITEM not in json.dumps(fresh.journal())
    assert fresh.maintenance.verify().faults == []
    assert fresh.promote("v2", force=True, why="x").promoted


def test_a_temporary_file_that_contains_it_keeps_the_erasure_pending(coll):
    """A killed writer left it a moment ago, or a running one writes it now: it is named, and removed when it is old."""
    contents = with_item(coll)
    block = next((coll.path / "vectors").glob("*/image"))
    (block / ".tmp-0123.safetensors").write_bytes(contents[1])
    done = coll.maintenance.erase(ITEM, "a test")
    (where,) = done.behind
    assert not done.erased and where.endswith(".tmp-0123.safetensors") and "10 minutes old" in done.behind[where]
    os.utime(block / ".tmp-0123.safetensors", (1, 1))
    assert again(coll).journal()[-1]["what"] == "erase" and not (coll.path / "pending.json").exists()
    assert traces(coll.path, contents, []) == []


def test_a_reason_that_names_the_item_is_refused(coll):
    with_item(coll)
    for why, says in ((f"{ITEM} left us", "contains the item's id"), (" ", "needs --why")):
        with pytest.raises(DataError, match=says):
            coll.maintenance.erase(ITEM, why)
    assert not (coll.path / "pending.json").exists() and ITEM in coll.search(text="x", k=50).ids


def test_content_that_another_item_has_too_stays(coll):
    shared = picture("red", 900)
    coll.upsert([Row("item-of-mine", "red", {"image": shared}, {}), Row("item-of-hers", "red", {"image": shared}, {})])
    assert coll.maintenance.erase("item-of-mine", "a test").erased
    assert again(coll).search(image=shared, k=1).ids == ["item-of-hers"] and coll.value("item-of-hers", "image") == shared


def test_a_damaged_version_is_reported_and_the_rest_is_erased(coll):
    with_item(coll)
    path = coll.layout.directory("v1") / "canaries.safetensors"
    kept = path.read_bytes()
    path.write_bytes(b"\0" * 64)
    coll.promote("v2", force=True, why="a test")
    done = again(coll).maintenance.erase(ITEM, "a test")
    assert not done.erased and list(done.behind) == ["v1"] and ITEM not in again(coll).search(text="x", k=50).ids
    path.write_bytes(kept)
    fresh = again(coll)  # opening it finishes the erasure
    assert not (coll.path / "pending.json").exists() and fresh.journal()[-1]["what"] == "erase"
    assert traces(coll.path, [], []) == []


def test_the_only_canary_is_replaced_by_others(coll):
    """A version whose other canaries were erased before; the model is verified with the last one before it goes."""
    (found,) = coll.catalog.sample("image", 1)
    content, label = coll.catalog.read(found, "image"), found.contents["image"][0]
    vectors = [coll.open(v).stores["image"].fetch([found.id])[0] for v in ("v1", "v2")]
    for version in ("v1", "v2"):
        assert keep_canaries(coll.layout.directory(version) / "canaries.safetensors", {"image": np.array([label])})
    fresh = again(coll)
    assert all(fresh.open(v).canaries["image"][0].tolist() == [label] for v in ("v1", "v2"))
    done = fresh.maintenance.erase(found.id, "asked for it")
    assert done.erased and done.behind == {}, done
    assert traces(coll.path, [content], vectors) == []
    fresh = again(coll)
    for version in ("v1", "v2"):
        labels = fresh.open(version).canaries["image"][0].tolist()
        assert len(labels) > 10 and label not in labels


def test_20_replacements_leave_one_content(coll):
    for seed in range(20):
        coll.upsert([Row("again", "red", {"image": picture("red", 2000 + seed)}, {})])
    with sqlite3.connect(coll.path / "corpus" / "items.sqlite") as db:
        assert db.execute("select count(*) from blobs").fetchone()[0] == 1
        coll.delete(["again"])
        assert db.execute("select count(*) from blobs").fetchone()[0] == 0


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_killed_at_a_moment_of_the_erasure(coll, tmp_path, share):
    killed_erasure(coll, tmp_path, share)


@pytest.mark.slow
def test_killed_at_100_moments(shelf, tmp_path):
    import shutil

    for n in range(100):
        shutil.copytree(shelf["root"] / "coll", tmp_path / str(n) / "coll")
        with Collection(tmp_path / str(n) / "coll") as coll:
            killed_erasure(coll, tmp_path / str(n), (n + 0.5) / 100)
        shutil.rmtree(tmp_path / str(n))


def killed_erasure(coll, tmp_path, share):
    contents = with_item(coll)
    vectors = [coll.open(v).stores["image"].fetch([ITEM])[0] for v in ("v1", "v2")]
    coll.close()
    calls = 134_000  # about what an erasure makes; the last kills may come too late
    killed_at(int(share * calls), lambda: bool(Collection(coll.path).maintenance.erase(ITEM, "a test")), tmp_path / "out.json")
    begun = (coll.path / "pending.json").exists()
    fresh = Collection(coll.path)
    if not begun and ITEM in fresh.search(text="x", k=50).ids:  # killed before it began
        fresh.maintenance.erase(ITEM, "a test")
    assert traces(coll.path, contents, vectors) == [] and not (coll.path / "pending.json").exists()
    for version in ("v1", "v2"):
        assert len(fresh.search(text="x", k=50, version=version).ids) == 25
        fresh.pool.verify(fresh.open(version), all_vectors=True)
