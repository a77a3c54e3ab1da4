"""Micro-batches: who shares a pass, whose answer and whose error is whose."""

import asyncio
import threading
import time

import numpy as np
import pytest

from mmtune.errors import MmtuneError
from mmtune.index.collection import Collection
from mmtune.index.query.filters import parse
from mmtune.index.query.query import Query
from mmtune.index.query_content import decode_query
from mmtune.serve.batcher import Batcher
from tests.support.serve_helpers import collection, picture


def test_values_that_arrive_together_share_a_pass_and_get_their_own_answers():
    passes, gate = [], threading.Event()

    def run(key, values):
        gate.wait(10)
        passes.append((key, list(values)))
        return [(key, v * v) for v in values]

    async def ask():
        batcher = Batcher(run, window=0.05, most=8)
        first = asyncio.create_task(batcher.submit("a", 0))
        await asyncio.sleep(0.2)  # its pass has begun and waits at the gate
        rest = [(k, v, asyncio.create_task(batcher.submit(k, v))) for v in range(1, 21) for k in ("a", "b")]
        await asyncio.sleep(0)
        gate.set()
        assert await first == ("a", 0)
        for key, value, task in rest:
            assert await task == (key, value * value)
        await batcher.close()

    asyncio.run(asyncio.wait_for(ask(), 30))
    assert passes[0] == ("a", [0]) and [len(v) for _, v in passes[1:]] == [8, 8, 8, 8, 4, 4]
    assert [k for k, _ in passes[1:]] == ["a", "b", "a", "b", "a", "b"]  # keys take turns
    assert [v for k, values in passes for v in values if k == "b"] == list(range(1, 21))  # in order of arrival


def test_an_error_is_its_own_requests_alone():
    def run(key, values):
        if 13 in values:
            raise ValueError(f"unlucky among {len(values)}")
        return [KeyError(v) if v == 11 else v + 1 for v in values]

    async def ask():
        batcher = Batcher(run, window=0.05)
        found = await asyncio.gather(*(batcher.submit("k", v) for v in range(10, 16)), return_exceptions=True)
        assert found[0] == 11 and found[2:3] + found[4:] == [13, 15, 16]
        assert isinstance(found[1], KeyError) and str(found[3]) == "unlucky among 1"
        wrong = Batcher(lambda key, values: [], window=0)
        with pytest.raises(RuntimeError, match="0 results for 1"):
            await wrong.submit("k", 1)
        assert await batcher.submit("k", 1) == 2  # it goes on
        await wrong.close(), await batcher.close()

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_closing_answers_what_waits_and_takes_no_more():
    done = []

    async def ask():
        batcher = Batcher(lambda key, values: (time.sleep(0.05), done.extend(values), values)[2], window=5.0, most=2)
        tasks = [asyncio.create_task(batcher.submit("k", n)) for n in range(5)]
        gone = asyncio.create_task(batcher.submit("k", 99))
        await asyncio.sleep(0)
        gone.cancel()
        begin = time.monotonic()
        await batcher.close()
        assert time.monotonic() - begin < 4 and [await t for t in tasks] == list(range(5)) and 99 not in done
        with pytest.raises(RuntimeError, match="stopping"):
            await batcher.submit("k", 1)

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_a_lone_value_waits_for_the_window_and_no_longer():
    async def ask():
        batcher = Batcher(lambda key, values: values, window=0.02)
        await batcher.submit("k", 0)
        begin = time.monotonic()
        await batcher.submit("k", 1)
        assert 0.015 < time.monotonic() - begin < 2
        await batcher.close()
        alone = Batcher(lambda key, values: values, window=30.0)
        alone.expected = lambda: 1  # who knows that nobody else comes does not wait
        begin = time.monotonic()
        await alone.submit("k", 1)
        assert time.monotonic() - begin < 10
        await alone.close()

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_filters_that_python_finds_equal_do_not_share_a_pass(tmp_path):
    """`a = 1` and `a = true` are equal to Python and different to a filter."""
    from mmtune.contracts import Row

    with Collection(tmp_path / "shelf", create=True) as c:
        c.upsert([Row("number", None, {"text": b"one"}, {"a": 1}), Row("flag", None, {"text": b"two"}, {"a": True})])
        c.build("tiny:clip", quiet=True)
        c.promote("v1")
        one = decode_query("text", "one")
        found = c.search_many([Query("text", one, where=parse(w)) for w in ("a = 1", "a = true") * 5])
    assert [a.ids for a in found] == [["number"], ["flag"]] * 5


def test_searches_that_share_a_pass_give_what_they_give_alone(tmp_path_factory):
    """Words, pictures, items, filters and targets mixed, with some that cannot be answered: those fail alone."""
    with Collection(collection(tmp_path_factory)) as c:
        words = [{"text": f"a {c} square {n}"} for n in range(3) for c in ("red", "blue")]
        pictures = [{"image": picture(c, (30 + n, 40))} for n in range(3) for c in ("red", "green")]
        more = [{"item": "0-003"}, {"item": "0-003", "k": 3}, {"item": "nothing"}, {"text": "x", "where": "shade = 'dark'"}]
        more += [
            {"text": "x", "target": ["audio"]},
            {"text": "x", "target": ["text", "depth"]},
            {"text": "red dark", "hybrid": True},
        ]
        queries = [{"k": 5} | q for q in [*words, *pictures, *more]]

        def ask(query):
            names = [m for m in ("text", "image") if m in query]
            where, target, hybrid = query.get("where"), query.get("target"), query.get("hybrid", False)
            return Query(
                *([names[0], decode_query(names[0], query[names[0]])] if names else []),
                item=query.get("item"),
                k=query["k"],
                where=parse(where) if where else None,
                target=tuple(target) if target else None,
                hybrid=hybrid,
            )

        for version in ("v1", "v2"):
            together = c.search_many([ask(q) for q in queries], version)
            c.pool.query_cache.clear()
            errors = 0
            for query, got in zip(queries, together, strict=True):
                try:
                    want = c.search(**query, version=version)
                except MmtuneError as e:
                    errors += 1
                    assert str(got) == str(e)
                    continue
                assert (got.version, got.fingerprint, got.query, got.ids) == (version, want.fingerprint, want.query, want.ids)
                np.testing.assert_allclose([r["score"] for r in got.results], [r["score"] for r in want.results], atol=1e-5)
            assert errors == 2


def test_what_was_asked_before_is_not_encoded_again(tmp_path_factory):
    with Collection(collection(tmp_path_factory)) as c:
        opened, passes = c.open(), []
        forward = opened.encode_signals
        opened.encode_signals = lambda m, signals: (passes.append(len(signals)), forward(m, signals))[1]
        asks = [Query("text", decode_query("text", w)) for w in ("one", "two", "three")]
        first = [a.ids for a in c.search_many(asks[:2])]
        again = [a.ids for a in c.search_many(asks)]
        assert again[:2] == first and passes == [2, 1]
