"""The next item is prepared while the caller uses the current one, in order; errors of preparation are raised in the caller."""

import threading

import pytest
import torch

from mmtune.runtime.prefetch import DeviceCopier, prefetch


def test_the_next_item_is_prepared_while_the_current_one_is_used():
    started = [threading.Event() for _ in range(4)]

    def work(n):
        started[n].set()
        return n * n

    found = []
    for n, square in enumerate(prefetch(range(4), work)):
        if n < 3:
            assert started[n + 1].wait(10), "nobody works on the next one"
        assert n > 1 or not started[n + 2].is_set(), "more than one ahead"
        found.append(square)
    assert found == [0, 1, 4, 9]
    assert list(prefetch([], work)) == []


def test_an_error_of_the_source_or_the_work_is_raised_where_it_would_be_used():
    def source():
        yield 1
        raise ValueError("the source broke")

    items = prefetch(source(), lambda n: n)
    assert next(items) == 1
    with pytest.raises(ValueError, match="the source broke"):
        next(items)
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0], lambda n: 1 / n))


def test_on_the_cpu_nothing_is_copied():
    x = torch.ones(3)
    assert DeviceCopier(torch.device("cpu"))(x) is x
