"""Confidence intervals of shares and of differences of shares."""

import math
from statistics import NormalDist


def wilson_interval(share: float, count: int, level: float = 0.05) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); (0, 1) if there is no observation.

    share: observed share. It may also be the mean of values in [0, 1], of which none varies more than a yes or no with that
        mean: the interval is then too wide rather than too narrow.
    count: number of independent observations
    level: the interval has the confidence 1 - level
    """
    if not count:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - level / 2)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def share_difference(share: float, count: int, other: float, other_count: int, level: float = 0.05) -> tuple[float, float]:
    """Return the interval of `share` - `other` of two independent samples (Newcombe 1998, method 10)."""
    (low, high), (other_low, other_high) = (wilson_interval(s, n, level) for s, n in ((share, count), (other, other_count)))
    difference = share - other
    return (
        difference - math.hypot(share - low, other_high - other),
        difference + math.hypot(high - share, other - other_low),
    )
