"""Cached vectors that a disk or a program damaged: found by their checksums, computed again, never served and never promoted."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmtune.errors import DataError
from mmtune.index.collection import Collection
from mmtune.index.row_checksums import row_checksums
from tests.support.index_helpers import BASE, OTHER, again, coll_fixture, shelf_fixture  # noqa: F401


def negate(coll, version, rows):
    """Negate the vectors of some rows of the version's cache, as a program that writes in place would. Returns their keys."""
    fingerprint = coll.layout.record(version)["fingerprint"]
    (path,) = sorted((coll.path / "vectors" / fingerprint / "image").glob("*.safetensors"))
    arrays = load_file(path)
    arrays["vectors"][rows] *= -1
    save_file(arrays, path, {"fingerprint": fingerprint, "modality": "image"})
    return arrays["keys"][rows]


def damaged_rows(cache):
    return sum(cache.check_block(p)[1] for p in (cache.directory / "image").glob("*.safetensors"))


def vectors_of(coll, version):
    store = coll.open(version).stores["image"]
    return store.fetch(sorted(store.ids()))


def test_checksums_are_those_of_a_plain_loop_and_notice_every_changed_bit():
    rng = np.random.default_rng(0)
    keys, vectors = rng.integers(-(2**62), 2**62, 5), rng.normal(size=(5, 7)).astype(np.float32)
    wrap, golden = 2**64, 0x9E3779B97F4A7C15

    def multiplier(n):
        x = (n + 1) * golden % wrap
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % wrap
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % wrap
        return (x ^ (x >> 31)) | 1

    for key, vector, got in zip(keys.tolist(), vectors, row_checksums(keys, vectors).tolist(), strict=True):
        words = vector.view(np.uint32).tolist()
        want = golden + key % wrap * multiplier(0) + sum(w * multiplier(n + 1) for n, w in enumerate(words))
        assert got % wrap == want % wrap
    for bit in range(32 * 7):
        changed = vectors.copy()
        changed.view(np.uint32)[2, bit // 32] ^= np.uint32(1 << bit % 32)
        assert (row_checksums(keys, changed) != row_checksums(keys, vectors)).tolist() == [False, False, True, False, False]


def test_negated_cached_vectors_are_computed_again_by_the_next_build(coll):
    right = vectors_of(coll, "v1")
    negate(coll, "v1", slice(0, 20))
    built = coll.build(BASE, quiet=True)
    assert (built.version, built.embedded, built.reused) == ("v3", 20, 4)
    assert np.allclose(vectors_of(again(coll), "v3"), right, atol=1e-6)
    assert coll.promote("v3").promoted


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 24)])
def test_a_damaged_cache_keeps_no_healthy_version_from_being_opened_or_promoted(coll, rows):
    keys = negate(coll, "v2", rows)
    fingerprint = coll.layout.record("v2")["fingerprint"]
    right = vectors_of(coll, "v2")
    fresh = again(coll)
    assert fresh.search(text="x", version="v2", k=3).version == "v2"
    assert fresh.promote("v2", force=True, why="a test").promoted
    cache = again(coll).vector_cache(fingerprint, 64)
    assert cache.intact("image", keys).all() and damaged_rows(cache) == 0
    labels = [coll.catalog.items([i])[i].contents["image"][0] for i in sorted(coll.open("v2").stores["image"].ids())]
    assert np.allclose(cache.read("image", np.array(labels)), right, atol=1e-6)


def test_a_damaged_row_is_not_read_not_merged_and_not_written_to_a_store(coll, monkeypatch):
    keys = negate(coll, "v1", slice(3, 5))
    cache = again(coll).vector_cache(coll.layout.record("v1")["fingerprint"], 64)
    assert damaged_rows(cache) == 2
    monkeypatch.setattr("mmtune.index.vector_cache.MERGE_FROM", 1)
    cache.merge("image")
    with pytest.raises(DataError, match="2 vectors are missing or were damaged"):
        cache.read("image", keys)
    assert damaged_rows(cache) == 0 and len(cache.keys("image")) == 22


def test_a_read_only_cache_leaves_damaged_rows_out(coll, monkeypatch):
    keys = negate(coll, "v1", slice(3, 5))

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("mmtune.index.vector_cache.write_bytes", refuse)
    cache = again(coll).vector_cache(coll.layout.record("v1")["fingerprint"], 64)
    assert not cache.intact("image", keys).any() and len(cache.keys("image")) == 22


def test_blocks_without_checksums_are_read_as_before(tmp_path, shelf):
    with Collection(tmp_path / "c", create=True) as coll:
        coll.build(OTHER, shelf["data"], quiet=True)
        fingerprint = coll.layout.record("v1")["fingerprint"]
        for path in (coll.path / "vectors" / fingerprint / "image").glob("*.safetensors"):
            arrays = load_file(path)
            del arrays["checks"]
            save_file(arrays, path, {"fingerprint": fingerprint, "modality": "image"})
        assert again(coll).build(OTHER, quiet=True).embedded == 0
