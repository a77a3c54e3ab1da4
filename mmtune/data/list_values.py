"""Cells that are lists: several captions, pictures or sounds in one row of a source, each of which becomes a row."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def pair_lists(values: Mapping[str, Sequence[T]]) -> tuple[list[dict[str, T]], str]:
    """Rows of the values of each modality, and why there is no other way where their numbers do not fit ("" where they do).

    A single value is in every row. Lists of equal length are paired by position: there is no cross product. Of lists of other
    lengths only the first values are a row.
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
