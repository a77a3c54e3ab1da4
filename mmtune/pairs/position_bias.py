"""Estimate from a log how the position of an item in a result list changes its chance of being examined.

The position-based model: P(click | query, item, rank k) = examination_k * attractiveness(query, item). A pair that was shown at
several ranks compares them with each other (intervention harvesting, Agarwal et al., "Estimating Position Bias without Intrusive
Interventions", WSDM 2019). All such pairs are used at once: the expected number of clicks is impressions * examination_k *
attractiveness, which is a Poisson regression with a fixed effect for each pair. Its maximum of likelihood is consistent although
each pair has few clicks, and although clicks are no Poisson counts, because only the mean has to be right (Wooldridge, 1999).
Pairs without any click, and pairs shown at one rank alone, say nothing about the ranks and drop out.
"""

from dataclasses import dataclass

import numpy as np

from mmtune.contracts import JsonObject

ITERATIONS = 500
TOLERANCE = 1e-7
MIN_CLICKS = 30
"""A rank whose pairs that were also shown elsewhere have fewer clicks gets the value of the power law fitted to the other ranks."""


@dataclass(frozen=True)
class PositionBias:
    """Examination probabilities relative to rank 1.

    examination: float [K], of ranks 1..K, clipped from below
    exponent: E of the power law 1 / rank**E that fits them; used for further ranks
    estimated: the ranks that are estimated; the others follow the power law
    pairs, clicks: number of pairs that were shown at several ranks and clicked, and their clicks
    """

    examination: np.ndarray
    exponent: float
    estimated: list[int]
    pairs: int
    clicks: int

    def to_dict(self) -> JsonObject:
        """The bias as data that JSON can represent."""
        return {
            "examination": [round(float(x), 6) for x in self.examination],
            "exponent": round(self.exponent, 4),
            "estimated_positions": self.estimated,
            "pairs_at_several_positions": self.pairs,
            "their_clicks": self.clicks,
        }


def power_law(exponent: float, positions: int, clip: float) -> PositionBias:
    """An examination probability of 1 / rank**exponent."""
    ranks = np.arange(1, positions + 1, dtype=np.float64)
    return PositionBias(np.maximum(ranks**-exponent, clip), exponent, [], 0, 0)


def estimate(
    pair: np.ndarray, position: np.ndarray, impressions: np.ndarray, clicks: np.ndarray, positions: int, clip: float
) -> PositionBias | None:
    """Estimate the examination probabilities from counts by (pair, position); None if no clicked pair was shown at two ranks.

    pair: int [C], number of the (query, item) pair of each count
    position: int [C], rank from 1 to `positions`
    impressions, clicks: float [C]
    clip: smallest probability that is returned, which bounds the inverse-propensity weights by 1 / clip
    """
    _, pair = np.unique(pair, return_inverse=True)
    total = np.bincount(pair, clicks)
    several = np.bincount(pair) > 1
    use = (several & (total > 0))[pair]
    if not use.any():
        return None
    _, pair = np.unique(pair[use], return_inverse=True)
    k, n, c = position[use] - 1, impressions[use].astype(np.float64), clicks[use].astype(np.float64)
    of_rank = np.bincount(k, c, positions)
    comparable = _comparable(pair, k, of_rank)
    enough = comparable & (of_rank >= min(MIN_CLICKS, of_rank[comparable].max()))
    theta = _fit(pair, k, n, c, positions)
    anchor = int(np.flatnonzero(enough)[0])
    exponent = _exponent(theta, of_rank, enough)
    level = (anchor + 1.0) ** -exponent / theta[anchor]  # rank 1 itself where it is estimated
    ranks = np.arange(1, positions + 1, dtype=np.float64)
    examination = np.where(enough, theta * level, ranks**-exponent)
    examination = np.clip(examination / examination[0], clip, None)
    estimated = [int(r) + 1 for r in np.flatnonzero(enough)]
    return PositionBias(examination, exponent, estimated, int(pair.max()) + 1, int(c.sum()))


def _fit(pair: np.ndarray, k: np.ndarray, n: np.ndarray, c: np.ndarray, positions: int) -> np.ndarray:
    """Maximise the likelihood by fitting ranks and pairs in turn (iterative proportional fitting)."""
    clicks_of_pair, clicks_of_rank = np.bincount(pair, c), np.bincount(k, c, positions)
    theta = np.ones(positions)
    for _ in range(ITERATIONS):
        attractiveness = clicks_of_pair / np.bincount(pair, n * theta[k])
        expected = np.bincount(k, n * attractiveness[pair], positions)
        new = np.divide(clicks_of_rank, expected, out=np.full(positions, 1e-12), where=(expected > 0) & (clicks_of_rank > 0))
        new /= np.average(new, weights=clicks_of_rank)
        if np.abs(new - theta).max() < TOLERANCE:
            return new
        theta = new
    return theta


def _comparable(pair: np.ndarray, k: np.ndarray, of_rank: np.ndarray) -> np.ndarray:
    """bool [K]: the ranks that pairs link, directly or over other ranks, with the rank of the most clicks."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    order = np.lexsort((k, pair))
    linked = pair[order][1:] == pair[order][:-1]
    a, b = k[order][:-1][linked], k[order][1:][linked]
    graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(len(of_rank), len(of_rank)))
    _, part = connected_components(graph, directed=False)
    return part == part[int(of_rank.argmax())]


def _exponent(theta: np.ndarray, weight: np.ndarray, use: np.ndarray) -> float:
    """The exponent of the power law, by least squares on logarithms weighted by clicks; between 0 and 3."""
    x, y, w = np.log(np.arange(1, len(theta) + 1))[use], np.log(theta[use]), weight[use]
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    spread = float((w * x * x).sum())
    return float(np.clip(-(w * x * y).sum() / spread, 0, 3)) if spread > 0 else 1.0
