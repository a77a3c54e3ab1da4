"""A packed row's value -> signal. What was fine when it was packed and no longer is: an error, not a rejected row."""

from typing import TYPE_CHECKING, Any

from mmtune import modalities
from mmtune.errors import DataError, Rejected

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


def decode_row(data: "Data | WeightedConcat", row: int, modality: str, enough: float | None = None) -> Any:
    """The signal of row number `row`, or `enough` of it (see `Modality.decode_scaled`). Raises DataError naming the data, the
    row and the modality."""
    kind, value = modalities.get(modality), data.read(row, modality)
    try:
        return kind.decode(value) if enough is None else kind.decode_scaled(value, enough)
    except Rejected as e:
        raise DataError(
            f"{data.spec}: row {data.ids[row]!r}: {modality}: {e}; pack the data again to reject such rows"
        ) from None
