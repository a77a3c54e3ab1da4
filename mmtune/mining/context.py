"""The argument with which sources and guards are created: queries, candidates, positives and data of one direction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mmtune.errors import DataError
from mmtune.mining.near_duplicates import ContentHashes
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items
from mmtune.relevance.positives import Positives

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

RowsOf: TypeAlias = Callable[[list[str]], np.ndarray]
"""Maps row ids to row numbers of the data, int64; -1 for ids that are not in the data."""


@dataclass(frozen=True)
class MiningContext:
    """Everything about one mined direction.

    direction: "a->b", query and candidate modality
    queries, candidates: the items of the two modalities
    positives: the known positives
    options: the options for this direction
    data: the rows' contents and columns; None if only vectors were given
    content_hashes: {modality: hashes that identify near-duplicates}
    """

    direction: str
    queries: Items
    candidates: Items
    positives: Positives
    options: MiningOptions
    data: "Data | WeightedConcat | None" = None
    content_hashes: Mapping[str, ContentHashes] = field(default_factory=dict)

    def require_data(self, purpose: str) -> "Data | WeightedConcat":
        """Return the data. Raises DataError, which names `purpose`, if only vectors were given."""
        if self.data is None:
            raise DataError(f"{purpose}: needs the data, but only vectors were given")
        return self.data

    def with_positives(self, positives: Positives) -> "MiningContext":
        """Return the same context with other known positives."""
        return replace(self, positives=positives)


def row_finder(data: "Data | WeightedConcat") -> RowsOf:
    """Return a function that maps row ids to row numbers of `data`, -1 for ids that are not in it."""
    number = {row_id: i for i, row_id in enumerate(data.ids)}
    return lambda ids: np.array([number.get(i, -1) for i in ids], np.int64)
