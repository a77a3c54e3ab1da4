"""Decoding of a packed row's value. Values were checked when they were packed, so one that cannot be decoded is an error here."""

from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.errors import DataError, Rejected

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


def decode_row(data: "Data | WeightedConcat", row: int, modality: str, input_size: float | None = None) -> Signal:
    """The signal of row number `row`; with `input_size` at a reduced resolution that is enough for it (see
    `Modality.decode_scaled`). Raises DataError naming the data, the row and the modality."""
    kind, value = modalities.get(modality), data.read(row, modality)
    try:
        return kind.decode(value) if input_size is None else kind.decode_scaled(value, input_size)
    except Rejected as e:
        raise DataError(
            f"{data.spec}: row {data.ids[row]!r}: {modality}: {e}; pack the data again to reject such rows"
        ) from None
