"""Probes of the recall: a healthy index passes in every way of asking, and damage that searches answer without an error is seen."""

import faiss
import numpy as np
import pytest

from mmtune.errors import DataError
from mmtune.index.collection import Collection
from mmtune.index.monitoring import canary_probe
from mmtune.index.monitoring.canary_probe import probe
from mmtune.index.monitoring.probe_log import last_probe, probe_log, probe_of_line, run_probe
from mmtune.runtime.work_lock import file_lock
from tests.support.corpora import packed
from tests.support.index_helpers import BASE, COLUMNS, coll_fixture, row, shelf_fixture  # noqa: F401


def probed(coll, **options):
    return probe(coll.layout, coll.catalog, coll.pool, seed=0, **options)


@pytest.fixture(scope="module")
def approximate(tmp_path_factory):
    """300 items in a faiss HNSW index."""
    root = tmp_path_factory.mktemp("hnsw")
    with Collection(root / "coll", create=True) as coll:
        coll.build(BASE, packed(root, 300, 0, COLUMNS), index="hnsw", quiet=True)
        coll.promote("v1")
    return root / "coll"


def test_a_healthy_index_finds_everything(coll):
    result = probed(coll)
    index = result.indexes["image"]
    assert result.ok and result.reason == "" and index.recall == 1 and index.found == index.expected
    # the items, the canaries of the images among them, and the canaries of the captions
    assert index.expected == 24 + 16 and index.queries == 24 + 16 + 16
    coll.upsert([row("n", "red", 5)])
    coll.delete(["0-001"])
    assert probed(coll, k=50).ok  # more results than items


def test_a_damaged_faiss_index_is_seen(approximate, monkeypatch):
    """The index file is replaced by one over other vectors: each search is answered, with wrong items."""
    monkeypatch.setattr("mmtune.index.stores.faiss_store.MAX_EXACT", 0)  # up to 20,000 items, the index would not be used
    with Collection(approximate) as coll:
        assert probed(coll).ok
        (file,) = approximate.rglob("*.index")
        graph = faiss.read_index(str(file))
        wrong = faiss.IndexHNSWFlat(graph.d, 4, faiss.METRIC_INNER_PRODUCT)
        vectors = np.random.default_rng(0).standard_normal((graph.ntotal, graph.d)).astype(np.float32)
        wrong.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        whole = file.read_bytes()
        faiss.write_index(wrong, str(file))
    try:
        with Collection(approximate) as coll:
            coll.open("v1")  # its stored vectors are right, so it is opened
            assert len(coll.search(text="a red square", k=5).results) == 5
            result = probed(coll)
            index = result.indexes["image"]
            assert not result.ok and index.high < 0.95 and index.found < index.expected
            assert "the image index finds 0." in result.reason and f"of {index.expected} items" in result.reason
    finally:
        file.write_bytes(whole)


def test_changed_vectors_are_seen_although_they_agree_with_their_index(coll):
    """Exact search over the store itself would find nothing wrong: the cached embeddings do."""
    coll.open("v1")
    store = coll.open("v1").stores["image"]
    ids = store.ids()
    vectors = store.fetch(ids)
    store.upsert(ids, np.roll(vectors, 1, axis=0), [{} for _ in ids])
    result = probed(coll)
    assert not result.ok and result.indexes["image"].recall < 0.9


def test_rows_that_vanish_from_a_lancedb_table_are_seen(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    with Collection(tmp_path / "coll", create=True) as coll:
        coll.build(BASE, packed(tmp_path, 60, 0, COLUMNS), store="lancedb", quiet=True)
        coll.promote("v1")
        assert probed(coll).ok
        location = coll.layout.store_location("v1", "image", coll.layout.record("v1")["store"])
        table = lancedb.connect(str(location.directory)).open_table(location.name)
        table.delete("id in (" + ", ".join(f"'{id}'" for id in coll.open("v1").stores["image"].ids()[:20]) + ")")
        result = probed(coll)  # of the version as this process has it open
        index = result.indexes["image"]
        assert not result.ok and index.found < index.expected - 10 and index.recall < 0.9
    with Collection(tmp_path / "coll") as coll:  # another process cannot open it any more
        result = probed(coll)
        assert not result.ok and not result.indexes and "40 vectors in the store, 60 items" in result.reason


def test_a_missing_file_is_a_fault_of_the_probe(coll):
    with Collection(coll.path) as fresh:
        (coll.path / "versions/v1/canaries.safetensors").unlink()
        result = probed(fresh)
        assert not result.ok and "canaries" in result.fault


def test_no_live_version(tmp_path):
    with Collection(tmp_path / "c", create=True) as coll, pytest.raises(DataError, match="no version is live"):
        probed(coll)


def test_probes_are_logged_and_take_turns(coll, monkeypatch):
    result = run_probe(coll.layout, coll.catalog, coll.pool)
    line = last_probe(coll.path)
    assert result.ok and probe_of_line(line) == result and line["drift"] == []
    assert coll.status().probe == line
    # a second process does not probe at the same time, nor too soon afterwards
    assert run_probe(coll.layout, coll.catalog, coll.pool, wait=0, every=3600) is None
    assert run_probe(coll.layout, coll.catalog, coll.pool, wait=0, every=1e-9) is None  # 20 times its duration has not passed
    coll.promote("v2", force=True, why="a test")
    assert run_probe(coll.layout, coll.catalog, coll.pool, wait=0, every=3600).version == "v2"  # not probed yet
    with file_lock(coll.path / "history" / ".probe.lock"):
        assert run_probe(coll.layout, coll.catalog, coll.pool, wait=0) is None
    assert len(probe_log(coll.path).read()) == 2
    monkeypatch.setattr("mmtune.index.monitoring.probe_log.REST", 0)
    assert run_probe(coll.layout, coll.catalog, coll.pool, wait=0, every=1e-9) is not None


def test_exact_search_is_done_in_parts(coll, monkeypatch):
    whole = probed(coll)
    monkeypatch.setattr(canary_probe, "CHUNK", 1)
    monkeypatch.setattr("mmtune.index.item_catalog.CHUNK", 5)
    assert probed(coll).indexes == whole.indexes
