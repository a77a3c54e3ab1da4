"""Decode a value of an opened dataset. `pack` has checked all values, so a value that cannot be decoded is an error."""

import time
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.contracts import LoadTimes, Signal
from mmtune.errors import DataError, Rejected

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


def decode_row(
    data: "Data | WeightedConcat", row: int, modality: str, input_size: float | None = None, times: LoadTimes | None = None
) -> Signal:
    """Read and decode the value of one row.

    row: row number
    input_size: the size to which preprocessing will scale the signal; allows decoding at a reduced resolution (see
        `Modality.decode_scaled`). None means full resolution
    times: gets the time of reading and decoding, and the number of bytes

    Raises DataError, which names the dataset, the row and the modality, if the value cannot be decoded.
    """
    begin = time.perf_counter()
    kind, value = modalities.get(modality), data.read(row, modality)
    after_read = time.perf_counter()
    try:
        signal = kind.decode(value) if input_size is None else kind.decode_scaled(value, input_size)
    except Rejected as e:
        raise DataError(
            f"{data.spec}: row {data.ids[row]!r}: {modality}: {e}; --skip-bad skips such values, and `mmtune pack` rejects them"
        ) from None
    if times is not None:
        times.add(LoadTimes(after_read - begin, time.perf_counter() - after_read, size=len(value)))
    return signal
