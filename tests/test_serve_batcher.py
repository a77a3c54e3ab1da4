"""Micro-batches: who shares a pass, whose answer and whose error is whose."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmtune.errors import DataError
from mmtune.lifecycle.collection import Collection
from mmtune.serve.batcher import Batcher
from mmtune.serve.served import Served
from tests.serve_helpers import collection, picture


def test_values_that_arrive_together_share_a_pass_and_get_their_own_answers():
    passes, gate = [], threading.Event()

    def run(key, values):
        gate.wait(10)
        passes.append((key, list(values)))
        return [(key, v * v) for v in values]

    batcher = Batcher(run, window=0.05, most=8)
    first = batcher.submit("a", 0)
    time.sleep(0.2)  # its pass has begun and waits at the gate
    rest = [(k, v, batcher.submit(k, v)) for v in range(1, 21) for k in ("a", "b")]
    gate.set()
    assert first.result(10) == ("a", 0)
    for key, value, future in rest:
        assert future.result(10) == (key, value * value)
    batcher.close()
    assert passes[0] == ("a", [0]) and [len(v) for _, v in passes[1:]] == [8, 8, 8, 8, 4, 4]
    assert [k for k, _ in passes[1:]] == ["a", "b", "a", "b", "a", "b"]  # keys take turns
    assert [v for k, values in passes for v in values if k == "b"] == list(range(1, 21))  # in order of arrival


def test_an_error_is_its_own_requests_alone():
    def run(key, values):
        if 13 in values:
            raise ValueError(f"unlucky among {len(values)}")
        return [v + 1 for v in values]

    batcher = Batcher(run, window=0.05)
    futures = {v: batcher.submit("k", v) for v in range(10, 16)}
    for value, future in futures.items():
        if value == 13:
            with pytest.raises(ValueError, match="among 1"):
                future.result(10)
        else:
            assert future.result(10) == value + 1
    wrong = Batcher(lambda key, values: [], window=0)
    with pytest.raises(RuntimeError, match="0 results of 1"):
        wrong.submit("k", 1).result(10)
    assert batcher.submit("k", 1).result(10) == 2  # it goes on
    wrong.close(), batcher.close()


def test_closing_answers_what_waits_and_takes_no_more():
    batcher = Batcher(lambda key, values: (time.sleep(0.05), values)[1], window=5.0, most=2)
    futures = [batcher.submit("k", n) for n in range(5)]
    gone = batcher.submit("k", 99)
    gone.cancel()
    begin = time.monotonic()
    batcher.close()
    assert time.monotonic() - begin < 4 and [f.result(0) for f in futures] == list(range(5)) and gone.cancelled()
    with pytest.raises(RuntimeError, match="stopping"):
        batcher.submit("k", 1)


def test_a_lone_value_waits_for_the_window_and_no_longer():
    batcher = Batcher(lambda key, values: values, window=0.02)
    batcher.submit("k", 0).result(10)
    begin = time.monotonic()
    batcher.submit("k", 1).result(10)
    assert 0.015 < time.monotonic() - begin < 2
    batcher.close()
    alone = Batcher(lambda key, values: values, window=30.0)
    alone.expected = lambda: 1  # who knows that nobody else comes does not wait
    begin = time.monotonic()
    alone.submit("k", 1).result(10)
    assert time.monotonic() - begin < 10
    alone.close()


def test_filters_that_python_finds_equal_do_not_share_a_pass(tmp_path):
    """`a = 1` and `a = true` are equal to Python and different to a filter."""
    from mmtune.contracts import Row

    path = tmp_path / "shelf"
    with Collection(path, create=True) as c:
        c.upsert([Row("number", None, {"text": b"one"}, {"a": 1}), Row("flag", None, {"text": b"two"}, {"a": True})])
        c.build("tiny:clip", quiet=True)
        c.promote("v1")
    with Served(path, 0.05) as served, ThreadPoolExecutor(20) as pool:
        served.open()
        wheres = ["a = 1", "a = true"] * 20
        found = list(pool.map(lambda w: served.search(text="one", where=w).ids, wheres))
    assert found == [["number"], ["flag"]] * 20


def test_shared_passes_give_the_vectors_of_the_collection(tmp_path_factory):
    """Twenty threads ask two versions by two modalities; the answers are those of one at a time, the bad ones fail alone."""
    path = collection(tmp_path_factory)
    asks = [{"text": f"a {c} square {n}"} for n in range(4) for c in ("red", "blue")]
    asks += [{"image": picture(c, (30 + n, 40))} for n in range(4) for c in ("red", "green")]
    asks += [{"image": b"no picture"}, {"image": picture()[:50]}]
    sizes = []
    with Collection(path) as plain, Served(path, 0.05, 32, lambda size, seconds: sizes.append(size)) as served:
        served.open("v1"), served.open("v2")

        def search(c, ask, version):
            try:
                return c.search(k=5, version=version, **ask)
            except DataError as e:
                return str(e)

        jobs = [(ask, v) for ask in asks for v in ("v1", "v2")]
        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda job: search(served, *job), jobs))
        for (ask, version), got in zip(jobs, found, strict=True):
            want = search(plain, ask, version)
            if isinstance(want, str):
                assert got.partition(" <")[0] == want.partition(" <")[0]  # Pillow's reason names an address in memory
                continue
            assert got.version == version and got.fingerprint == want.fingerprint and got.query == want.query
            assert got.ids == want.ids
            np.testing.assert_allclose([r["score"] for r in got.results], [r["score"] for r in want.results], atol=1e-5)
        assert sum(sizes) == len(jobs) - 4 and len(sizes) < sum(sizes) / 2, sizes
        served.search(text="a red square 0")  # what was asked before is not encoded again
        assert sum(sizes) == len(jobs) - 4
