"""What the faiss directory does beyond the contract: segments, compaction, prefixes, mapped files, readers beside a writer."""

import json

import numpy as np
import pytest

from mmtune.errors import DataError, ModelError
from mmtune.index.query.filters import parse
from mmtune.index.stores import create_store, faiss_store, open_store
from mmtune.index.stores.faiss_index import plan_index
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order
from tests.support.store_helpers import clustered, place, unit_rows

DIM = 16


def answer(held: dict, queries, k, keep=lambda meta: True):
    """The exact answer from a dict id -> (vector, meta)."""
    ids = [i for i in held if keep(held[i][1])]
    if not ids:
        return [[] for _ in queries]
    vectors = np.stack([held[i][0] for i in ids])
    scores, at = topk(queries, vectors, k, order=tie_order(ids))
    return [[(ids[j], float(s)) for s, j in zip(*row, strict=True)] for row in zip(scores, at, strict=True)]


def got(store, queries, k, where=None):
    return [[(h.id, h.score) for h in hits] for hits in store.search(queries, k, where)]


def test_random_writes_equal_a_dict(tmp_path, monkeypatch):
    """Upserts, deletes, builds in any order, read by the writer and by a reader that was open all along."""
    monkeypatch.setattr(faiss_store, "MAX_SEGMENTS", 5)
    rng, at = np.random.default_rng(0), place("faiss", tmp_path, None)
    store, held = create_store(at, DIM, "f"), {}
    reader = open_store(at)
    queries, where = unit_rows(rng, 4, DIM), parse("n < 3")
    for _ in range(60):
        names = [f"i{n:02d}" for n in rng.choice(50, rng.integers(1, 6), replace=False)]
        if (what := rng.random()) < 0.6:
            vectors = unit_rows(rng, len(names), DIM)
            meta = [{"n": int(rng.integers(0, 6))} for _ in names]
            store.upsert(names, vectors, meta)
            held |= {i: (v, m) for i, v, m in zip(names, vectors, meta, strict=True)}
        elif what < 0.9:
            store.delete(names)
            held = {i: x for i, x in held.items() if i not in names}
        else:
            assert store.build("flat") == {"index": "flat"}
        for some in (store, reader):
            assert sorted(some.ids()) == sorted(held) and len(some) == len(held)
            assert got(some, queries, 7) == answer(held, queries, 7)
            assert got(some, queries, 7, where) == answer(held, queries, 7, lambda m: m["n"] < 3)
        if held:
            assert np.array_equal(reader.fetch(list(held)[:3]), np.stack([x[0] for x in list(held.values())[:3]]))
    manifest = json.loads((at.directory / "manifest.json").read_text())
    assert len(manifest["segments"]) <= 6
    named = {*manifest["segments"], manifest["base"], "manifest"}
    assert {p.name.split(".")[0] for p in at.directory.iterdir()} <= named | {"None"}


@pytest.mark.parametrize("index", ["hnsw", pytest.param("ivfpq", marks=pytest.mark.slow)])
def test_approximate_indexes_find_and_follow_writes(tmp_path, index):
    rng = np.random.default_rng(1)
    vectors, queries = clustered(rng, 12_000, DIM), None
    queries = clustered(np.random.default_rng(1), 12_000, DIM)[::400]
    ids = [f"i{n:05d}" for n in range(len(vectors))]
    store = create_store(place("faiss", tmp_path, None), DIM, "f")
    store.upsert(ids, vectors, [{"n": n % 2} for n in range(len(ids))])
    assert store.build(index)["index"] == index
    max_exact, faiss_store.MAX_EXACT = faiss_store.MAX_EXACT, 100
    try:
        held = {i: (v, {"n": n % 2}) for n, (i, v) in enumerate(zip(ids, vectors, strict=True))}
        store.delete(ids[:500])
        store.upsert(["new"], queries[:1], [{"n": 1}])
        held = {i: x for i, x in held.items() if i not in set(ids[:500])} | {"new": (queries[0], {"n": 1})}
        for where, keep in ((None, lambda m: True), (parse("n = 1"), lambda m: m["n"] == 1)):
            want, have = answer(held, queries, 10, keep), got(store, queries, 10, where)
            found = [len({i for i, _ in w} & {i for i, _ in h}) / 10 for w, h in zip(want, have, strict=True)]
            assert np.mean(found) >= 0.95, np.mean(found)
            truth = [{i: s for i, s in w} for w in want]
            assert all(s == t[i] for t, h in zip(truth, have, strict=True) for i, s in h if i in t)  # scores are exact
    finally:
        faiss_store.MAX_EXACT = max_exact


def test_search_by_a_prefix_reranks_by_the_whole(tmp_path):
    """A space whose first dimensions carry most: the prefix proposes, all dimensions decide."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(30_000, DIM)) * np.array([4.0] * 4 + [0.5] * 12)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = vectors[:40] + 0.05 * rng.normal(size=(40, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    ids = [f"i{n:05d}" for n in range(len(vectors))]
    store = create_store(place("faiss", tmp_path, None), DIM, "f")
    store.upsert(ids, vectors, [{}] * len(ids))
    assert store.build("flat", search_dim=4) == {"index": "flat", "search_dim": 4}
    want = answer({i: (v, {}) for i, v in zip(ids, vectors, strict=True)}, queries, 5)
    have = got(store, queries, 5)
    assert [h[0] for h in have] == [w[0] for w in want]
    with pytest.raises(DataError, match="16 dimensions"):
        store.build("flat", search_dim=16)


def test_auto_is_exact_until_it_is_large():
    assert plan_index("auto", 50_000, 256)["index"] == "flat"
    assert plan_index("auto", 1_000_000, 512)["index"] == "hnsw" and plan_index("auto", 10_000_000, 512)["index"] == "ivfpq"
    assert plan_index("ivfpq", 500, 64)["index"] == "flat" and "too few" in plan_index("ivfpq", 500, 64)["note"]
    with pytest.raises(DataError, match="no index 'hnws'"):
        plan_index("hnws", 10, 10)


def test_files_of_another_model_or_damaged_are_named(tmp_path):
    at = place("faiss", tmp_path, None)
    store = create_store(at, DIM, "one")
    store.upsert(["a"], unit_rows(np.random.default_rng(0), 1, DIM), [{}])
    manifest = at.directory / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"one"', '"two"'))
    with pytest.raises(ModelError, match="vectors of another model \\(one, not two\\)"):
        open_store(at)
    manifest.write_text(text)
    file = next(at.directory.glob("*.vectors.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="damaged"):
        open_store(at)
    manifest.unlink()
    with pytest.raises(DataError, match="no faiss store there"):
        open_store(at)
