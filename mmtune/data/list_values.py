"""Source rows that have several values of a modality, e.g. a list of captions. Each value becomes a row of its own."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def pair_lists(values: Mapping[str, Sequence[T]]) -> tuple[list[dict[str, T]], str]:
    """Split the values of one source row into several rows with at most one value per modality.

    values: modality -> list of its values

    A modality with a single value has it in every row. Lists of equal length are paired by position; there is no cross product.
    If lists differ in length, only one row is made, from their first values.

    Returns (rows, problem); the problem describes lists of different lengths and is "" otherwise.
    """
    lengths = {name: len(of_modality) for name, of_modality in values.items() if len(of_modality) > 1}
    uneven = ""
    if len(set(lengths.values())) > 1:
        uneven = f"lists of different lengths ({', '.join(f'{n} {name}' for name, n in lengths.items())})"
    count = 1 if uneven else max(lengths.values(), default=1)
    return [
        {name: of_modality[i if len(of_modality) > 1 else 0] for name, of_modality in values.items() if of_modality}
        for i in range(count)
    ], uneven
