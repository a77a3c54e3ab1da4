"""One contract, five stores, each with its real engine: files, LanceDB, PostgreSQL with pgvector, Qdrant's local mode, qdrant-edge."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mmtune.errors import DataError, MissingExtra
from mmtune.index.query.filters import parse
from mmtune.index.stores import StoreLocation, create_store, open_store
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order
from tests.support.store_helpers import KINDS, clustered, place, postgres, unit_rows

DIM = 24
NEEDS = {
    "faiss": ["faiss"],
    "lancedb": ["lancedb"],
    "pgvector": ["psycopg", "pgvector", "pgserver"],
    "qdrant": ["qdrant_client"],
    "qdrant-edge": ["qdrant_edge"],
}
NASTY = [
    "x' OR '1'='1",
    "'; DROP TABLE shop_v1_a; --",
    "x\\' OR 1=1 --",
    'a"; DROP TABLE shop_v1_a; --',
    "$1 %s {} :x ?",
    "a\\",
    "''",
    "täst ☃ 北京 😀",
    "new\nline\ttab",
    "n__price",
    "{'$ne': null}",
    "../../etc/passwd",
]


@pytest.fixture(scope="module")
def server():
    with postgres() as url:
        yield url


@pytest.fixture(params=KINDS)
def at(request, tmp_path):
    """A location of that kind of store."""
    for module in NEEDS[request.param]:
        pytest.importorskip(module)
    url = request.getfixturevalue("server") if request.param == "pgvector" else None
    return place(request.param, tmp_path, url)


@pytest.fixture
def store(at):
    created = create_store(at, DIM, "sha256:abc")
    yield created
    created.close()


def rows(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    ids = [f"item-{i:04d}" for i in range(n)]
    meta = [{"category": "ABC"[i % 3], "price": i / 2, "n": i, "new": i % 2 == 0} for i in range(n)]
    return ids, unit_rows(rng, n, DIM), meta


def exact(queries, ids, vectors, k, keep=None):
    """The results of an exhaustive search: [(id, score)]."""
    at = [i for i in range(len(ids)) if keep is None or keep[i]]
    ids, vectors = [ids[i] for i in at], vectors[at]
    scores, found = topk(queries, vectors, k, order=tie_order(ids))
    return [[(ids[j], float(s)) for s, j in zip(*row, strict=True)] for row in zip(scores, found, strict=True)]


def pairs(answer):
    return [[(h.id, h.score) for h in hits] for hits in answer]


def test_what_is_written_is_read_by_a_store_opened_again(at, store):
    ids = [f"{i}-{n}" for i, n in enumerate(NASTY)] + ["é" * 500]
    vectors = unit_rows(np.random.default_rng(1), len(ids), DIM)
    meta = [{"words": i, "nested": {"a": [1, None, {"b": "ü"}], "deep": {"x": 1.5}}, "none": None, "on": True} for i in ids]
    store.upsert(ids, vectors, meta)
    store.close()
    again = open_store(at)
    assert (again.kind, again.fingerprint, again.dim, len(again)) == (at.kind, "sha256:abc", DIM, len(ids))
    assert sorted(again.ids()) == sorted(ids) and again.size() > 0
    order = list(reversed(ids))
    assert np.array_equal(again.fetch(order), vectors[::-1])
    for hits, id, expected in zip(again.search(vectors, 1), ids, meta, strict=True):
        assert hits[0].id == id and hits[0].meta == expected and type(hits[0].meta["nested"]["a"][0]) is int
    again.close()


def test_results_are_those_of_exhaustive_search_ties_by_descending_id(store):
    ids, vectors, meta = rows(300)
    vectors[50:90] = vectors[7]  # more equal vectors than any margin proposes
    vectors[100:103] = -vectors[9]
    store.upsert(ids, vectors, meta)
    queries = np.concatenate([vectors[[7, 9]], unit_rows(np.random.default_rng(2), 5, DIM)])
    assert pairs(store.search(queries, 10)) == exact(queries, ids, vectors, 10)
    built = store.build("flat")
    assert built["index"] == "flat"
    for k in (1, 10, 60, 300, 1000):
        assert pairs(store.search(queries, k)) == exact(queries, ids, vectors, k)


def test_an_empty_store(store):
    query = unit_rows(np.random.default_rng(0), 2, DIM)
    for _ in range(2):
        assert len(store) == 0 and store.ids() == [] and store.search(query, 5) == [[], []]
        assert store.search(query, 5, parse("a = 1")) == [[], []] and store.fetch([]).shape == (0, DIM)
        store.delete(["nobody"])
        store.upsert([], np.empty((0, DIM), np.float32), [])
        assert store.build("auto")["index"] == "flat"


def test_upserts_replace_deletes_remove_and_both_may_be_repeated(at, store):
    ids, vectors, meta = rows(40)
    store.upsert(ids, vectors, meta)
    store.upsert(ids, vectors, meta)
    assert len(store) == 40
    store.build("flat")
    new = unit_rows(np.random.default_rng(5), 10, DIM)
    store.upsert(ids[5:15], new, [{"colour": "red"}] * 10)  # other keys: the old ones are gone
    store.delete([ids[0], ids[39], "nobody", "x' OR '1'='1"])
    store.delete([ids[0]])
    other = open_store(at)  # as another process sees it
    vectors[5:15] = new
    for s in (store, other):
        assert len(s) == 38 and np.array_equal(s.fetch(ids[1:39]), vectors[1:39])
        assert pairs(s.search(vectors[[0, 7, 20]], 38)) == exact(vectors[[0, 7, 20]], ids[1:39], vectors[1:39], 38)
        assert sorted(h.id for h in s.search(vectors[:1], 40, parse("colour = 'red' and price is null"))[0]) == ids[5:15]
        assert len(s.search(vectors[:1], 40, parse("price >= 0"))[0]) == 28
    with pytest.raises(DataError, match="item-0000"):
        store.fetch([ids[1], ids[0]])
    other.upsert(["fresh"], vectors[:1], [{}])
    assert store.search(vectors[:1], 1)[0][0].id == "fresh"
    other.close()


MESSY = [
    {},
    {"a": None, "b": {"c": None}},
    {"a": 1, "b": {"c": "x", "d": 2}},
    {"a": 1.0, "b": "x", "tags": ["x", 1]},
    {"a": -2.5e-3, "b": 3},
    {"a": "1", "b": True},
    {"a": True, "b": {"c": True, "d": {"e": "deep"}}},
    {"a": False, "b": []},
    {"a": "Apple", "b": {"c": "X"}, "with space": "y", "UPPER": 1, "upper": 2},
    {"a": "apple", "b": {"c": 'it\'s "quoted" \\ back'}, "0": "zero", "äö": "ü"},
    {"a": "é", "b": {"c": 10**15}, "tags": {"0": "x"}},
    {"a": [1], "b": {"c": [{"d": 2}]}, "a_b": 5, "a b": 6},
    {"a": float("nan"), "b": float("inf"), "c": 9007199254740993},
    {"a": "", "b": {"c": {}}, 'q"u': "w"},
]
LEAVES = [
    "a = 1",
    "a = '1'",
    "a = true",
    "a = 'Apple'",
    "a in (1, 'apple', true)",
    "a != 1",
    "a not in ('Apple', 1, false)",
    "a = ''",
    "a < 1",
    "a <= 1",
    "a > -1",
    "a >= -2.5e-3",
    "a is null",
    "a is not null",
    "b is null",
    "b.c = 'x'",
    "b.c is null",
    "b.c.d = 2",
    "b.c = 'it''s \"quoted\" \\ back'",
    "b.c > 1e14",
    "b.d < 3",
    "b.d.e = 'deep'",
    "b = true",
    "b != true",
    "nowhere = 1",
    "nowhere != 1",
    "nowhere is null",
    "\"with space\" = 'y'",
    "UPPER = 1",
    "upper = 1",
    "\"0\" = 'zero'",
    "äö = 'ü'",
    "tags = 'x'",
    "tags.\"0\" = 'x'",
    "a_b = 5",
    '"a b" = 6',
    '"a_b" = 6',
    "c = 9007199254740992",
    "c in (9007199254740993, 4)",
    "a = -0.0025",
    '"q""u" = \'w\'',
    "tags is null",
]
WORD_ORDER = ["a < 'b'", "a >= 'apple'", "a > 'Z' and a <= 'é'", "b.c >= 'X'"]


def test_filters_mean_the_same_in_every_store(at, store):
    ids = [f"m{i:03d}" for i in range(len(MESSY) * 4)]
    meta = [MESSY[i % len(MESSY)] for i in range(len(ids))]
    vectors = unit_rows(np.random.default_rng(3), len(ids), DIM)
    store.upsert(ids, vectors, meta)
    rng = random.Random(4)
    sources = LEAVES + [f"not ({x})" for x in LEAVES]
    for _ in range(40):
        a, b, c = (rng.choice(LEAVES) for _ in range(3))
        sources.append(
            f"{rng.choice(['', 'not '])}({a} {rng.choice(['and', 'or'])} not ({b} or not {c})) and {rng.choice(LEAVES)}"
        )
        sources.append(f"not (not ({a} and {b}) or {c})")
    sources += [] if at.kind.startswith("qdrant") else WORD_ORDER + [f"not ({x})" for x in WORD_ORDER]
    for source in sources:
        where = parse(source)
        keep = [where.matches(m) for m in meta]
        assert pairs(store.search(vectors[:1], 100, where)) == exact(vectors[:1], ids, vectors, 100, keep), source


@pytest.mark.parametrize("at", ["qdrant", "qdrant-edge"], indirect=True)
def test_qdrant_refuses_an_order_of_strings(store):
    with pytest.raises(DataError, match="orders numbers only"):
        store.search(np.zeros((1, DIM)), 3, parse("a < 'b'"))


def test_long_and_deep_filters(at, store):
    ids, vectors, meta = rows(60)
    store.upsert(ids, vectors, meta)
    wide = " or ".join(f"n = {i}" for i in range(1000))
    words = "category in (" + ", ".join(f"'w{i}'" for i in range(1500)) + ", 'A')"
    deep = "not (" * 6 + "(" * 8 + "n < 7" + ")" * 14
    nested = "category = 'A'"
    for i in range(12):
        nested = (
            f"(n >= {i % 3} and {nested})" if i % 2 else f"not (n < 0 or not {nested})" if i < 8 else f"(n < 0 or {nested})"
        )
    for source, count in ((wide, 60), (words, 20), (deep, 7), (nested, None)):
        where = parse(source)
        expected = [i for i, m in zip(ids, meta, strict=True) if where.matches(m)]
        assert sorted(h.id for h in store.search(vectors[:1], 60, where)[0]) == expected
        assert count is None or len(expected) == count


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivfpq"])
def test_a_filter_of_three_among_a_thousand_finds_those_three(at, store, index):
    if index == "ivfpq" and at.kind in ("pgvector", "qdrant", "qdrant-edge"):
        with pytest.raises(DataError, match="index flat or hnsw"):
            store.build(index)
        return
    rng = np.random.default_rng(6)
    ids, vectors = [f"p{i}" for i in range(1000)], clustered(rng, 1000, DIM)
    rare = {13, 500, 999}
    store.upsert(ids, vectors, [{"kind": "rare" if i in rare else "common", "i": i} for i in range(1000)])
    store.build(index)
    keep = [i in rare for i in range(1000)]
    queries = unit_rows(rng, 3, DIM)
    assert pairs(store.search(queries, 10, parse("kind = 'rare'"))) == exact(queries, ids, vectors, 10, keep)
    assert pairs(store.search(queries, 2, parse("kind = 'rare' and i > 13"))) == exact(
        queries, ids, vectors, 2, [i in rare and i > 13 for i in range(1000)]
    )


@pytest.mark.parametrize("index", ["hnsw", "ivfpq"])
def test_an_approximate_index_finds_nearly_all_and_what_came_after_it(at, store, index):
    if index == "ivfpq" and at.kind in ("pgvector", "qdrant", "qdrant-edge"):
        return
    rng = np.random.default_rng(7)
    n = 2000
    ids, vectors = [f"p{i}" for i in range(n)], clustered(rng, n + 20, DIM)
    vectors, queries = vectors[:n], vectors[n:]
    store.upsert(ids[:-10], vectors[:-10], [{}] * (n - 10))
    built = store.build(index)
    assert built["index"] == index or built["note"], built
    store.upsert(ids[-10:], vectors[-10:], [{}] * 10)
    found, right = store.search(queries, 10), exact(queries, ids, vectors, 10)
    recall = np.mean([len({h.id for h in f} & {i for i, _ in r}) / 10 for f, r in zip(found, right, strict=True)])
    assert recall >= 0.95, recall
    assert [h[0].id for h in store.search(vectors[-10:], 1)] == ids[-10:]
    assert all(len(h) == 10 and h == sorted(h, key=lambda x: (x.score, x.id), reverse=True) for h in found)
    assert store.build("flat")["index"] == "flat" and pairs(store.search(queries, 10)) == right


def test_injection_by_ids_metadata_and_filters(at, store):
    ids, vectors, meta = rows(20)
    store.upsert(ids, vectors, meta)
    extra = unit_rows(np.random.default_rng(8), len(NASTY), DIM)
    store.upsert(NASTY, extra, [{"v": n, n: n, "category": "Z"} for n in NASTY])
    for n in NASTY:
        quoted, column = "'" + n.replace("'", "''") + "'", '"' + n.replace('"', '""') + '"'
        for source in (f"v = {quoted}", f"{column} = {quoted}", f"v in ({quoted}, 'nothing')"):
            assert [h.id for h in store.search(vectors[:1], 40, parse(source))[0]] == [n], source
        assert len(store.search(vectors[:1], 40, parse(f"v != {quoted} or not {column} = 'x'"))[0]) == 20 + len(NASTY)
    assert np.array_equal(store.fetch(NASTY), extra)
    store.delete(NASTY[:6])
    assert sorted(store.ids()) == sorted(ids + NASTY[6:]) and np.array_equal(store.fetch(ids), vectors)
    store.delete(NASTY)
    assert len(store) == 20


def test_rows_that_do_not_belong_are_refused_and_nothing_of_their_batch_is_kept(at, store):
    ids, vectors, meta = rows(6)
    store.upsert(ids, vectors, meta)
    nan = vectors.copy()
    nan[3, 2] = np.nan
    other = np.ones((6, DIM + 1), np.float32)
    for bad in (
        (ids, other, meta),
        (ids, vectors[:5], meta),
        (ids, vectors, meta[:5]),
        (ids[:5], vectors, meta),
        (["new", *ids[1:5], "new"], vectors, meta),
        (["new", *ids[1:]], nan, meta),
    ):
        with pytest.raises(DataError) as caught:
            store.upsert(*bad)
        assert "\n" not in str(caught.value)
    assert len(store) == 6 and np.array_equal(store.fetch(ids), vectors)
    for query in (np.ones((2, DIM + 1)), np.ones(DIM)):
        with pytest.raises(DataError):
            store.search(query, 3)
    with pytest.raises(DataError):
        store.search(vectors, 0)
    with pytest.raises(DataError):
        store.build("annoy")


@pytest.mark.parametrize("at", KINDS[1:], indirect=True)  # files hold any id
@pytest.mark.parametrize(
    "bad", [("", {}), ("a\0b", {}), ("a\ud800", {}), ("x" * 1025, {}), ("a", {"k": "\0"}), ("a", {"k": {1: 2}})]
)
def test_what_an_engine_cannot_hold_is_refused_in_one_line(at, store, bad):
    with pytest.raises(DataError) as caught:
        store.upsert(["fine", bad[0]], unit_rows(np.random.default_rng(0), 2, DIM), [{}, bad[1]])
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value) and len(store) == 0


def test_stores_side_by_side_and_stores_that_do_not_exist(at, store, tmp_path):
    ids, vectors, meta = rows(5)
    store.upsert(ids, vectors, meta)
    second = place(at.kind, tmp_path, at.url, "shop_v2_a")
    with pytest.raises(DataError):
        open_store(second)
    b = create_store(second, 8, "sha256:def")
    b.upsert(["one"], np.ones((1, 8), np.float32) / 8**0.5, [{}])
    assert (len(store), store.dim, len(b), b.dim, b.fingerprint) == (5, DIM, 1, 8, "sha256:def")
    b.drop()
    b.close()
    with pytest.raises(DataError):
        open_store(second)
    assert len(store) == 5
    anew = create_store(at, 8, "sha256:def")  # what a killed build left is replaced
    assert len(anew) == 0 and anew.dim == 8
    anew.close()


@pytest.mark.parametrize("at", KINDS[1:], indirect=True)  # the place of files is the directory alone
def test_names_that_are_no_names_are_refused(at, tmp_path):
    for name in ('a"; DROP TABLE x; --', "../up", "", "A", "a" * 61):
        with pytest.raises(DataError, match="store name"):
            create_store(StoreLocation(at.kind, tmp_path, at.url, name), 4, "f")


@pytest.mark.parametrize("at", KINDS[1:], indirect=True)  # files: their own tests
def test_a_table_without_our_stamp_or_with_other_vectors_is_refused(at, store):
    """Vectors that another program wrote there are not vectors of the model."""
    store.close()
    if at.kind == "pgvector":
        import psycopg

        with psycopg.connect(at.url, autocommit=True) as c:
            c.execute("ALTER TABLE shop_v1_a ALTER COLUMN embedding TYPE vector(3)")
            with pytest.raises(DataError, match="stamped 24"):
                open_store(at)
            c.execute("COMMENT ON TABLE shop_v1_a IS NULL")
    elif at.kind == "lancedb":
        import lancedb

        db = lancedb.connect(str(at.directory))
        db.create_table("shop_v1_a", [{"id": "a", "vector": [1.0, 0.0], "meta": "{}", "present": ""}], mode="overwrite")
    elif at.kind == "qdrant-edge":
        document = json.loads((at.directory / "store.json").read_text())
        (at.directory / "store.json").write_text(json.dumps(document | {"fingerprint": None}))
    else:
        import qdrant_client

        client = qdrant_client.QdrantClient(path=str(at.directory))
        client.delete_collection("shop_v1_a")
        sizes = qdrant_client.models.VectorParams(size=DIM, distance=qdrant_client.models.Distance.DOT)
        client.create_collection("shop_v1_a", vectors_config=sizes)
        client.close()
    with pytest.raises(DataError, match="carries no fingerprint"):
        open_store(at)


CHILD = """
import sys, json, numpy as np
from pathlib import Path
from mmtune.index.stores import StoreLocation
from mmtune.index.stores import open_store
kind, directory, url, name = json.loads(sys.argv[1])
store = open_store(StoreLocation(kind, Path(directory), url, name))
n = 60
print("go", flush=True)
for turn in range(1, 10**6):
    vectors = np.zeros((n, 24), np.float32)
    vectors[np.arange(n), (np.arange(n) + turn) % 24] = 1
    store.upsert([f"i{i}" for i in range(n)], vectors, [{"turn": turn, "i": i} for i in range(n)])
    print(turn, flush=True)
"""


def test_a_killed_upsert_leaves_nothing_half_written(at, store):
    """Every row is whole; the transactional engines keep the batch together too; what was acknowledged is there."""
    store.close()
    args = json.dumps([at.kind, str(at.directory), at.url, at.name])
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, args],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as child:
        assert child.stdout.readline() == b"go\n"
        for _ in range(3):
            last = int(child.stdout.readline())
        time.sleep(random.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        last = max([last, *(int(x) for x in child.stdout.read().decode().split("\n")[:-1])])
    with_retry = time.monotonic() + 20  # the server rolls back by itself, in a moment
    while True:
        again = open_store(at)
        try:
            hits = again.search(np.eye(1, DIM, dtype=np.float32), 100)[0]
            break
        finally:
            assert time.monotonic() < with_retry
            ids = again.ids()
    assert len(hits) == len(ids) == 60
    turns = {h.meta["turn"] for h in hits}
    vectors = again.fetch([h.id for h in hits])
    assert all(v[(h.meta["i"] + h.meta["turn"]) % 24] == 1 for h, v in zip(hits, vectors, strict=True))
    assert turns <= {last, last + 1} and (at.kind == "qdrant" or len(turns) == 1)
    again.upsert(["i0"], np.eye(1, DIM, dtype=np.float32), [{"turn": 0, "i": 0}])
    assert len(again) == 60
    again.close()


def test_readers_in_threads_while_one_writes(store):
    ids, vectors, meta = rows(60)
    store.upsert(ids, vectors, meta)
    failures, done = [], threading.Event()

    def read():
        while not done.is_set():
            try:
                hits = store.search(vectors[:2], 5, parse("n >= 0"))
                assert [h[0].id for h in hits] == ids[:2] and all(len(h) == 5 for h in hits)
            except Exception as e:
                failures.append(e)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for r in readers:
        r.start()
    for turn in range(6):
        store.upsert([f"new-{turn}-{i}" for i in range(10)], vectors[20:30], [{"n": -1, f"key{turn}": turn}] * 10)
        store.delete([f"new-{turn}-{i}" for i in range(5)])
    store.build("flat")
    done.set()
    for r in readers:
        r.join()
    assert not failures, failures[0]
    assert len(store) == 60 + 30


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        ("lancedb", "lancedb", "lancedb"),
        ("pgvector", "psycopg", "pgvector"),
        ("qdrant", "qdrant_client", "qdrant"),
        ("qdrant-edge", "qdrant_edge", "qdrant-edge"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(kind, module, extra, tmp_path, monkeypatch):
    for name in [m for m in sys.modules if m == module or m.startswith(module + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        create_store(StoreLocation(kind, tmp_path, "postgresql://u@h/d" if kind == "pgvector" else None, "a"), 4, "f")
    assert str(caught.value).endswith(f'pip install "mmtune[{extra}]"')


def test_a_database_that_does_not_answer_is_one_line_without_the_password(tmp_path):
    for module in NEEDS["pgvector"][:2]:
        pytest.importorskip(module)
    for url in ("postgresql://me:hunter2@127.0.0.1:1/shop", "host=127.0.0.1 port=1 password=hunter2", None, "no url at all"):
        with pytest.raises(DataError) as caught:
            open_store(StoreLocation("pgvector", tmp_path, url, "a"))
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_qdrant_server_that_does_not_answer_is_one_line(tmp_path):
    pytest.importorskip("qdrant_client")
    with pytest.raises(DataError) as caught:
        open_store(StoreLocation("qdrant", tmp_path, "http://127.0.0.1:1", "a"))
    assert "127.0.0.1:1" in str(caught.value) and "\n" not in str(caught.value)


def test_qdrant_local_mode_takes_one_process(tmp_path):
    pytest.importorskip("qdrant_client")
    at = place("qdrant", tmp_path, None)
    store = create_store(at, 4, "f")
    code = "import sys; from mmtune.index.stores import StoreLocation; from pathlib import Path\n"
    code += "from mmtune.index.stores import open_store; from mmtune.errors import DataError\n"
    code += f"try: open_store(StoreLocation('qdrant', Path({str(at.directory)!r}), None, {at.name!r}))\nexcept DataError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert "open in another process" in done.stdout and not done.stderr, done.stderr
    store.close()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "meta.json").touch()  # what a process killed while it created the directory leaves
    create_store(StoreLocation("qdrant", tmp_path / "torn", None, "a"), 4, "f").close()
