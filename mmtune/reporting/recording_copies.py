"""Copies in example results: several items that are the same recording or picture are shown once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.errors import DataError, Rejected
from mmtune.evaluation.clusters import RECORDING_COLUMNS

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data


class RecordingCopies:
    """Decides whether two rows of the test data show the same recording or picture.

    They do if a column of `columns` has the same value in both, or if their values are near duplicates (perceptual hash).
    """

    def __init__(self, data: "Data", columns: Sequence[str] = RECORDING_COLUMNS):
        self.data, self.columns = data, columns
        self._keys: dict[tuple[str, int], int | None] = {}

    def same(self, modality: str, a: int, b: int) -> bool:
        """Whether the values of `modality` in rows a and b are copies."""
        if modalities.get(modality).language:
            return False
        one, two = self.data.meta(a), self.data.meta(b)
        if any(one.get(c) not in (None, "") and one.get(c) == two.get(c) for c in self.columns):
            return True
        distance = modalities.get(modality).near_duplicate_distance
        x, y = self._key(modality, a), self._key(modality, b)
        return x is not None and y is not None and (x ^ y).bit_count() <= distance

    def _key(self, modality: str, row: int) -> int | None:
        kind = modalities.get(modality)
        if kind.near_duplicate_distance < 0:
            return None
        if (modality, row) not in self._keys:
            try:
                self._keys[modality, row] = kind.near_duplicate_key(kind.decode(self.data.read(row, modality)))
            except (Rejected, DataError, KeyError):
                self._keys[modality, row] = None
        return self._keys[modality, row]
