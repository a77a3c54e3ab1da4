"""What a miner source or a guard is given when it is made: the two sides of one direction, their positives, and the data."""

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
"""Row ids -> int64 row numbers of the data, -1 where it has none."""


@dataclass(frozen=True)
class MiningContext:
    """One direction. direction: "a->b"; options: those of this direction; data: None when only vectors were given; content_hashes:
    modality -> hashes that near-duplicates are compared by."""

    direction: str
    queries: Items
    candidates: Items
    positives: Positives
    options: MiningOptions
    data: "Data | WeightedConcat | None" = None
    content_hashes: Mapping[str, ContentHashes] = field(default_factory=dict)

    def require_data(self, purpose: str) -> "Data | WeightedConcat":
        """The data, for a part that reads more than vectors. DataError names `purpose` when only vectors were given."""
        if self.data is None:
            raise DataError(f"{purpose} need the data; only vectors were given")
        return self.data

    def with_positives(self, positives: Positives) -> "MiningContext":
        """The same direction with other known positives."""
        return replace(self, positives=positives)


def row_finder(data: "Data | WeightedConcat") -> RowsOf:
    """Row ids -> row numbers of `data`, -1 where it has none."""
    number = {row_id: i for i, row_id in enumerate(data.ids)}
    return lambda ids: np.array([number.get(i, -1) for i in ids], np.int64)
