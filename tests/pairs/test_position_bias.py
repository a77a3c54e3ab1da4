"""The examination probabilities that a log is estimated to have."""

import numpy as np
import pytest

from mmtune.pairs.position_bias import estimate, power_law


def counts(rng, pairs, positions, examination, shown_at=2, impressions=200, clicks=None):
    """(pair, position, impressions, clicks) of pairs that are each shown at some ranks, drawn from the model itself."""
    pair, position, n, c = [], [], [], []
    for p in range(pairs):
        attractiveness = rng.uniform(0.05, 0.9)
        for k in rng.choice(positions, shown_at, replace=False):
            pair.append(p)
            position.append(k + 1)
            n.append(impressions)
            expected = impressions * examination[k] * attractiveness
            c.append(rng.binomial(impressions, examination[k] * attractiveness) if clicks is None else expected)
    return tuple(np.array(x) for x in (pair, position, n, c))


def test_counts_without_noise_give_the_probabilities_themselves():
    truth = np.array([1.0, 0.62, 0.5, 0.31, 0.12])
    bias = estimate(*counts(np.random.default_rng(0), 60, 5, truth, clicks="expected"), 5, 0.01)
    assert bias.examination == pytest.approx(truth, rel=1e-3) and bias.estimated == [1, 2, 3, 4, 5] and bias.pairs == 60


@pytest.mark.parametrize("impressions", [3, 300])
def test_many_pairs_of_few_impressions_count_as_few_pairs_of_many(impressions):
    truth = 1 / np.arange(1, 7)
    bias = estimate(*counts(np.random.default_rng(1), 90_000 // impressions, 6, truth, impressions=impressions), 6, 0.01)
    assert bias.examination == pytest.approx(truth, rel=0.1)
    assert bias.exponent == pytest.approx(1, abs=0.05)


def test_a_good_ranker_is_not_taken_for_position_bias():
    """Attractive items are shown higher: rates by rank fall, although the examination does not."""
    rng = np.random.default_rng(2)
    pair, position, n, c = [], [], [], []
    for p in range(400):
        home = rng.integers(1, 8)
        for k in (home, home + 1):
            pair.append(p)
            position.append(k)
            n.append(500)
            c.append(rng.binomial(500, 0.8 / home))
    bias = estimate(*map(np.array, (pair, position, n, c)), 8, 0.01)
    assert bias.examination == pytest.approx(np.ones(8), rel=0.1)


def test_ranks_without_evidence_follow_the_power_law_and_the_clip():
    rng = np.random.default_rng(3)
    truth = 1 / np.arange(1, 5)
    pair, position, n, c = counts(rng, 300, 4, truth)
    far = np.array([900, 900]), np.array([9, 10]), np.array([100, 100]), np.array([60, 40])  # linked with no other rank
    bias = estimate(*(np.concatenate(x) for x in zip((pair, position, n, c), far, strict=True)), 10, 0.15)
    assert bias.estimated == [1, 2, 3, 4]
    assert bias.examination[:4] == pytest.approx(truth, rel=0.1)
    assert bias.examination[4:6] == pytest.approx([5**-bias.exponent, 6**-bias.exponent])
    assert bias.examination[6:] == pytest.approx([0.15] * 4, rel=0.01)


def test_without_moved_items_there_is_no_estimate():
    one = np.ones(3, int)
    assert estimate(np.arange(3), one, one * 10, one, 3, 0.1) is None
    assert estimate(np.array([0, 0]), np.array([1, 2]), np.array([5, 5]), np.array([0, 0]), 2, 0.1) is None
    assert power_law(0.5, 4, 0.6).examination == pytest.approx([1, 0.5**0.5, 0.6, 0.6])
