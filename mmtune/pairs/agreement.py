"""How far annotators agree: Krippendorff's alpha (by its library), and each annotator against the others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import MissingExtra

K = TypeVar("K")


@dataclass(frozen=True)
class Agreement:
    """Agreement of several annotators.

    alpha: Krippendorff's alpha, 1 for full agreement and 0 for chance; None if no pair has two annotators, or if all grades are equal
    pairs: number of pairs with at least two annotators
    same: share of these on which all agree; None without any
    annotators: annotator -> {"judged", "with_others", "same": share equal to the median of the others}
    """

    alpha: float | None
    pairs: int
    same: float | None
    annotators: dict[str, JsonObject] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """The agreement as data that JSON can represent."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.pairs:
            return "agreement: no pair was judged by two annotators"
        alpha = "undefined (all grades are equal)" if self.alpha is None else f"{self.alpha:.3f}"
        return f"agreement: Krippendorff's alpha {alpha} on {self.pairs:,} pairs with several annotators; all agree on {self.same:.0%}"


def lower_median(grades: list[int]) -> int:
    """The median, the lower one of two, as evaluation takes it."""
    return sorted(grades)[(len(grades) - 1) // 2]


def agreement(grades: Mapping[K, Mapping[str, int]]) -> Agreement:
    """Measure the agreement.

    grades: {pair: {annotator: grade}}. With more than two different grades alpha is ordinal, else nominal.

    Raises MissingExtra without the library krippendorff.
    """
    names = sorted({name for of_pair in grades.values() for name in of_pair})
    several = [of_pair for of_pair in grades.values() if len(of_pair) > 1]
    same = sum(len(set(of_pair.values())) == 1 for of_pair in several)
    annotators: dict[str, JsonObject] = {}
    for name in names:
        own = [of_pair for of_pair in several if name in of_pair]
        equal = sum(of_pair[name] == lower_median([g for n, g in of_pair.items() if n != name]) for of_pair in own)
        judged = sum(name in of_pair for of_pair in grades.values())
        annotators[name] = {"judged": judged, "with_others": len(own), "same": equal / len(own) if own else None}
    return Agreement(_alpha(names, several), len(several), same / len(several) if several else None, annotators)


def _alpha(names: list[str], several: list[Mapping[str, int]]) -> float | None:
    values = {g for of_pair in several for g in of_pair.values()}
    if len(values) < 2:
        return None
    try:
        import krippendorff
    except ImportError:
        raise MissingExtra('agreement needs krippendorff: pip install "mmtune[pairs]"') from None
    matrix = np.array([[of_pair.get(name, np.nan) for of_pair in several] for name in names], np.float64)
    if len(values) > 2:
        return float(krippendorff.alpha(reliability_data=matrix, level_of_measurement="ordinal"))
    return float(krippendorff.alpha(reliability_data=matrix, level_of_measurement="nominal"))
