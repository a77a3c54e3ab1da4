"""The prior of click rates, estimated from the log by empirical Bayes.

A pair's value (clicks, with more for carts and orders) is taken as Poisson with mean rate * examinations, the rates of the pairs as Gamma with mean
`mean` and `strength` examinations. The posterior mean is (value + strength * mean) / (examinations + strength). Both are estimated by the method of
moments over the pairs, each weighted by its examinations up to CAP, so that neither the pairs that were shown most nor the noisiest decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune.pairs.log_options import LogSettings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CAP = 3.0
FALLBACK = 10.0
"""Strength, in examinations, where there are too few pairs to estimate it."""
WEAKEST, STRONGEST = 0.1, 10_000.0
UNITS = 10**9
"""Sums are of whole multiples of 1 / UNITS, because those do not depend on the order in which threads add them."""


@dataclass(frozen=True)
class RatePrior:
    """mean: rate of a pair of which nothing is known. strength: the number of examinations that this counts for."""

    mean: float
    strength: float


def gamma_prior(pairs: int, weight: float, first: float, second: float, noise: float, fallback_mean: float) -> RatePrior:
    """The prior from weighted sums over pairs.

    pairs: number of pairs
    weight, first, second: sums of w, w * rate and w * rate**2
    noise: sum of w * rate / examinations, the part of the spread that is due to chance
    fallback_mean: mean where the sums say nothing
    """
    if pairs < 3 or weight <= 0 or first <= 0:
        return RatePrior(fallback_mean, FALLBACK)
    mean = first / weight
    spread = (second / weight - mean**2) * pairs / (pairs - 1) - noise / weight
    strength = mean / spread if spread > 0 else STRONGEST
    return RatePrior(mean, float(f"{min(max(strength, WEAKEST), STRONGEST):.4g}"))


def rate_priors(con: DuckDBPyConnection, settings: LogSettings) -> dict[str, RatePrior]:
    """{split: its prior} from the table `valued` (split, n, e, value). A strength that the settings give is kept, with the mean of all examinations."""
    weight = f"least(e, {CAP}) / {CAP}"
    terms = (weight, f"{weight} * value / e", f"{weight} * (value / e) ** 2", f"{weight} * value / e / e")
    sums = ", ".join(
        f"CAST(coalesce(sum(CAST(round({t} * {UNITS}) AS HUGEINT)) FILTER (used), 0) AS DOUBLE) / {UNITS}" for t in terms
    )
    rows = con.execute(
        f"""SELECT split, sum(value) / (CAST(sum(units) AS DOUBLE) / {UNITS}), count(*) FILTER (used), {sums}
        FROM (SELECT *, n >= {settings.min_impressions} AND e > 0 AS used FROM valued) GROUP BY 1"""
    ).fetchall()
    found: dict[str, RatePrior] = {}
    for split, mean, pairs, *moments in rows:
        given, (weights, first, second, noise) = settings.prior, moments
        found[split] = gamma_prior(pairs, weights, first, second, noise, mean) if given is None else RatePrior(mean, given)
    return found
