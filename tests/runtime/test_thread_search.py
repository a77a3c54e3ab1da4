"""The search for the number of threads, on machines whose rates are known functions."""

import itertools
import random

import pytest

from mmtune.runtime.thread_search import REPEAT_AFTER, ThreadSearch


def search(maximum, rate, steps=1000):
    """Run until a search ends; rate: threads -> units per second. Returns (search, number of steps)."""
    found = ThreadSearch(maximum)
    for n in range(1, steps):
        if found.record(10, 10 / rate(found.threads)):
            return found, n
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("maximum", [1, 2, 3, 4, 6, 8, 12, 64, 96])
@pytest.mark.parametrize("best", [1, 2, 5, 8, 64])
def test_one_peak_is_found(maximum, best):
    def rate(n):
        return 100 / (0.05 + abs(n - best) / max(best, maximum) + 1 / best)

    if maximum == 1:
        assert ThreadSearch(1).threads == 1 and not ThreadSearch(1).is_searching
        return
    found, steps = search(maximum, rate)
    assert steps <= 60
    tried = max(rate(n) for n in found.rates)
    assert rate(found.threads) == tried
    if maximum <= 4:
        assert rate(found.threads) == max(map(rate, range(1, maximum + 1)))


def test_noise_and_warm_up_steps_do_not_decide():
    rng, before = random.Random(0), 0

    def rate(n):  # the first step with another number is ten times slower
        nonlocal before
        warm, before = n == before, n
        return {1: 100, 2: 150}[n] * (1 if warm else 0.1) * rng.uniform(0.85, 1.15)

    assert all(search(2, rate)[0].threads == 2 for _ in range(20))


def test_measured_again_when_steps_become_far_slower_and_when_they_do_not():
    quiet, busy = {1: 100.0, 2: 180.0}, {1: 60.0, 2: 8.0}
    found, _ = search(2, quiet.get)
    assert found.threads == 2
    for n in range(400):
        assert not found.record(10, 10 / (180 * (1 if n % 2 else 0.8))) and found.threads == 2  # usual differences
    ended = [found.record(10, 10 / busy[found.threads]) for _ in range(40)]
    assert sum(ended) == 1 and found.threads == 1 and found.rates == pytest.approx(busy)
    # the other programs end: steps with one thread are not slower, so only the repetition after many steps notices
    steps = next(n for n in itertools.count(1) if found.record(10, 10 / quiet[found.threads]))
    assert found.threads == 2 and steps <= REPEAT_AFTER + 40
