"""A packed row's value -> signal. What was fine when it was packed and no longer is: an error, not a rejected row."""

from typing import TYPE_CHECKING, Any

from mmtune import modalities
from mmtune.errors import DataError, Rejected

if TYPE_CHECKING:
    from mmtune.data.mix import Mix
    from mmtune.data.shards import Data


def decode_row(data: "Data | Mix", row: int, modality: str) -> Any:
    """The signal of row number `row`. Raises DataError naming the data, the row and the modality."""
    try:
        return modalities.get(modality).decode(data.read(row, modality))
    except Rejected as e:
        raise DataError(
            f"{data.spec}: row {data.ids[row]!r}: {modality}: {e}; pack the data again to reject such rows"
        ) from None
