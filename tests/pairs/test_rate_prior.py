"""The prior of click rates: its estimate, against the distribution that the rates were drawn from."""

import numpy as np
import pytest

import mmtune
from mmtune.pairs.click_grades import CONFIDENCE_Z
from mmtune.pairs.rate_prior import CAP, FALLBACK, STRONGEST, gamma_prior
from tests.support.click_simulator import NAMES, picture_shop
from tests.support.pairs_helpers import rows_of


def sums(value, e):
    rate, w = value / e, np.minimum(e, CAP) / CAP
    return len(e), w.sum(), (w * rate).sum(), (w * rate**2).sum(), (w * rate / e).sum()


@pytest.mark.parametrize(("mean", "strength"), [(0.3, 2.5), (0.1, 20.0), (0.5, 1.0)])
def test_mean_and_strength_of_drawn_rates_are_found_whatever_was_shown_most(mean, strength):
    rng = np.random.default_rng(0)
    rates = rng.gamma(mean * strength, 1 / strength, 40_000)
    e = rng.uniform(0.5, 10, len(rates)) * (1 + 10 * rates)  # a ranker that shows good items more often
    prior = gamma_prior(*sums(rng.poisson(rates * e), e), fallback_mean=0.0)
    assert prior.mean == pytest.approx(mean, rel=0.12) and prior.strength == pytest.approx(strength, rel=0.25)


def test_equal_rates_count_as_one_and_too_few_pairs_say_nothing():
    rng = np.random.default_rng(0)
    e = rng.uniform(5, 20, 3000)
    assert gamma_prior(*sums(rng.poisson(0.2 * e), e), fallback_mean=0.0).strength > 50
    same = np.full(10, 20.0)
    assert gamma_prior(*sums(0.2 * same, same), fallback_mean=0.0).strength == STRONGEST
    assert gamma_prior(2, 2.0, 0.4, 0.1, 0.0, fallback_mean=0.25).strength == FALLBACK
    assert gamma_prior(5, 5.0, 0.0, 0.0, 0.0, fallback_mean=0.25).mean == 0.25


def test_items_without_any_relevance_seldom_become_positives(tmp_path):
    log = picture_shop(tmp_path, photos=6, seed=7, sessions=4000, shown=10, swaps=0.4, noise=0.08)

    def of_no_relevance(**options):
        found = mmtune.pairs_from_logs(tmp_path / "log.parquet", tmp_path / f"out{options}", **NAMES, **options)
        pairs = rows_of(tmp_path / f"out{options}")
        return np.mean([log.truth[p["query"], p["item"]] == 0 for p in pairs]), found

    share, found = of_no_relevance()
    assert share < 0.6 * of_no_relevance(prior=10)[0]
    assert 0 < found.measures["rate_prior"]["train"]["strength"] < 10


def test_the_weight_is_the_lower_confidence_bound_of_the_rate():
    from scipy.stats import gamma

    for shape in (2.0, 5.0, 40.0):
        certain = (1 - 1 / (9 * shape) - CONFIDENCE_Z / (3 * shape**0.5)) ** 3
        assert shape * certain == pytest.approx(gamma.ppf(0.1, shape), rel=0.02)
