"""A server that gets one item at a time: the cache stays a few files, and the log is not parsed again for every write."""

import json

import numpy as np

from mmtune.contracts import Row
from mmtune.index import audit_log
from mmtune.index.collection import Collection
from mmtune.index.vector_cache import MERGE_FROM, VectorCache
from tests.support.index_helpers import BASE


def test_one_row_blocks_are_merged_in_steps_and_keep_every_vector(tmp_path):
    rng = np.random.default_rng(0)
    keys, vectors = rng.permutation(700) - 350, rng.normal(size=(700, 4)).astype(np.float32)
    most = 0
    for key, vector in zip(keys, vectors, strict=True):
        cache = VectorCache(tmp_path, "f", 4)
        cache.write("image", np.array([key]), vector[None])
        cache.merge("image")
        most = max(most, len(list(tmp_path.glob("image/*"))))
    cache = VectorCache(tmp_path, "f", 4)
    assert most <= (MERGE_FROM - 1) * 4  # limits 8, 64, 512 and 4096
    assert np.array_equal(cache.read("image", keys), vectors)
    assert cache.keys("image").tolist() == sorted(keys.tolist())
    assert cache.missing("image", np.array([-351, -350, 349, 350])).tolist() == [True, False, False, True]


def test_blocks_whose_keys_are_in_any_order_are_read_as_before(tmp_path):
    """Files of earlier versions have the rows in the order of writing."""
    from safetensors.numpy import save_file

    from mmtune.index.row_checksums import row_checksums

    keys, vectors = np.array([5, -3, 9, 0]), np.arange(16, dtype=np.float32).reshape(4, 4)
    (tmp_path / "image").mkdir()
    arrays = {"keys": keys, "vectors": vectors, "checks": row_checksums(keys, vectors)}
    save_file(arrays, tmp_path / "image" / "a.safetensors", {"fingerprint": "f", "modality": "image"})
    cache = VectorCache(tmp_path, "f", 4)
    assert np.array_equal(cache.read("image", np.array([9, 5])), vectors[[2, 0]])
    assert cache.intact("image", np.array([-3, 1, 0])).tolist() == [True, False, True]


def test_a_collection_that_gets_single_items_keeps_few_cache_files(tmp_path):
    rows = [Row(f"i{n}", None, {"text": f"thing {n}".encode()}, {}) for n in range(60)]
    with Collection(tmp_path / "c", create=True) as coll:
        coll.upsert(rows[:4])
        coll.build(BASE, modalities=["text"], quiet=True)
        coll.promote("v1")
        for row in rows[4:]:
            assert not coll.upsert([row]).behind
        fingerprint = coll.layout.record("v1")["fingerprint"]
        files = list((coll.path / "vectors" / fingerprint / "text").glob("*.safetensors"))
        assert len(files) < 2 * MERGE_FROM
        assert len(coll.vector_cache(fingerprint, 64).keys("text")) == 60
        assert sorted(coll.open("v1").stores["text"].ids()) == sorted(r.id for r in rows)
        assert not coll.maintenance.verify().faults


def test_appending_to_a_long_log_parses_no_change_of_an_item(tmp_path, monkeypatch):
    with Collection(tmp_path / "c", create=True) as coll:
        coll.upsert([Row("a", None, {"text": b"a thing"}, {})])
        coll.build(BASE, modalities=["text"], quiet=True)
        why = 'because "what": "upsert" is written here'
        coll.promote("v1", why=why)
        for n in range(50):
            audit_log.append(coll.layout, audit_log.event("upsert", items=n))
        parsed = []
        real = json.loads
        monkeypatch.setattr("mmtune.runtime.files.json.loads", lambda text: parsed.append(text) or real(text))
        audit_log.append(coll.layout, audit_log.event("delete", items=1))
        assert not [line for line in parsed if b'"items": 7' in line]
        monkeypatch.undo()
        assert [e["what"] for e in audit_log.releases(coll.layout)] == ["build", "promote"]
        assert audit_log.releases(coll.layout)[1]["why"] == why
        assert len(audit_log.read(coll.layout)) == 54
