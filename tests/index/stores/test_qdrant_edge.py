"""What the store of Qdrant's engine does beyond the contract: its journal, one process at a time, a bounded tail, damage."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtune.errors import DataError
from mmtune.index.query.filters import parse
from mmtune.index.stores import create_store, open_store
from mmtune.search.exact import topk
from tests.support.store_helpers import clustered, place, unit_rows

pytest.importorskip("qdrant_edge")
DIM = 16


def rows(n: int, seed: int = 0):
    return (
        [f"i{k:04d}" for k in range(n)],
        unit_rows(np.random.default_rng(seed), n, DIM),
        [{"n": k, "even": k % 2 == 0} for k in range(n)],
    )


@pytest.fixture
def at(tmp_path):
    return place("qdrant-edge", tmp_path, None)


def test_a_write_that_was_killed_before_it_reached_the_engine_is_repeated(at, monkeypatch):
    """The journal is complete, and the process is gone: an upsert and a delete are there when the store is opened again."""
    from mmtune.index.stores.qdrant_edge_shard import JOURNAL, EdgeFiles

    ids, vectors, meta = rows(30)
    store = create_store(at, DIM, "f")
    store.upsert(ids, vectors, meta)

    def killed(self, change, vectors_ND):
        raise KeyboardInterrupt

    def left(work, expected):
        """The store, opened again after `work` was killed."""
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(EdgeFiles, "_apply", killed)
            work()
        store.close()
        assert (at.directory / JOURNAL).exists()
        again = open_store(at)
        assert not (at.directory / JOURNAL).exists() and len(again) == expected
        assert np.array_equal(again.fetch(ids[:3]), -vectors[:3])
        return again

    store = left(lambda: store.upsert(ids[:3], -vectors[:3], meta[:3]), 30)
    store = left(lambda: store.delete(ids[20:]), 20)
    store.close()


def test_another_process_gets_one_line(at):
    store = create_store(at, DIM, "f")
    code = (
        "import sys; from pathlib import Path; from mmtune.errors import DataError\n"
        "from mmtune.index.stores import StoreLocation, open_store\n"
        f"try: open_store(StoreLocation('qdrant-edge', Path({str(at.directory)!r}), None, {at.name!r}))\n"
        "except DataError as e: print(e)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert "open in another process" in done.stdout and done.stdout.count("\n") == 1 and not done.stderr, done.stderr
    again = open_store(at)  # this process shares it
    store.upsert(*rows(5))
    assert len(again) == 5
    again.close(), store.close()
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert not done.stdout and not done.stderr, done.stderr


def test_points_after_the_graph_are_found_and_soon_part_of_it(at, monkeypatch):
    from mmtune.index.stores import qdrant_edge_store

    monkeypatch.setattr(qdrant_edge_store, "MIN_TAIL", 100)
    rng = np.random.default_rng(1)
    vectors, ids = clustered(rng, 1020, DIM), [f"p{k}" for k in range(1000)]
    store = create_store(at, DIM, "f")
    store.upsert(ids[:600], vectors[:600], [{}] * 600)
    assert store.build("hnsw")["index"] == "hnsw"
    indexed = [store._files.current.info().indexed_vectors_count]
    for start in range(600, 1000, 50):
        some = slice(start, start + 50)
        store.upsert(ids[some], vectors[some], [{}] * 50)
        assert [h[0].id for h in store.search(vectors[some], 1)] == ids[some]
        info = store._files.current.info()
        assert info.points_count - info.indexed_vectors_count <= max(100, info.indexed_vectors_count // 4)
        indexed.append(info.indexed_vectors_count)
    assert indexed[0] == 600 and set(indexed) == {600, 800}  # built again once, not at every write
    right = topk(vectors[1000:], vectors[:1000], 10)[1]
    found = store.search(vectors[1000:], 10)
    recall = np.mean([len({h.id for h in f} & {ids[j] for j in r}) / 10 for f, r in zip(found, right, strict=True)])
    assert recall >= 0.95
    store.close()


def test_compaction_leaves_no_byte_and_disturbs_no_open_store(at):
    ids, vectors, meta = rows(40)
    store, other = create_store(at, DIM, "f"), open_store(at)
    store.upsert([*ids, "a-very-secret-id"], np.vstack([vectors, vectors[:1]]), [*meta, {}])
    store.build("flat")
    store.delete(["a-very-secret-id"])
    assert any(b"a-very-secret-id" in p.read_bytes() for p in at.directory.rglob("*") if p.is_file())
    other.compact()
    assert not any(b"a-very-secret-id" in p.read_bytes() for p in at.directory.rglob("*") if p.is_file())
    for s in (store, other):
        assert (
            len(s) == 40 and sorted(h.id for h in s.search(vectors[:1], 40, parse("even = true and n < 10"))[0]) == ids[:10:2]
        )
    store.close(), other.close()


def test_damage_is_one_line_and_the_store_can_be_made_anew(at):
    store = create_store(at, DIM, "f")
    store.upsert(*rows(10))
    store.close()
    document = json.loads((at.directory / "store.json").read_text())
    for path in (at.directory / document["shard"]).rglob("segment.json"):
        path.write_text("{}")
    with pytest.raises(DataError) as caught:
        open_store(at)
    assert "\n" not in str(caught.value) and "repair" in str(caught.value)
    store = create_store(at, DIM, "g")
    assert (len(store), store.fingerprint) == (0, "g")
    store.drop(), store.close()
    assert not at.directory.exists()
    with pytest.raises(DataError, match="no such store"):
        open_store(at)
