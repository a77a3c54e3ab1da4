"""Read safetensors files through memory maps: only the header is loaded, the arrays stay on disk."""

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtune.errors import DataError

DTYPES = {"F32": np.float32, "I64": np.int64}


@dataclass(frozen=True)
class TensorFile:
    """The arrays of a file by name, memory-mapped read-only, and the metadata of its header."""

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


def map_tensors(path: Path, advice: str) -> TensorFile:
    """Memory-map a safetensors file of float32 and int64 arrays.

    advice: error message for a damaged file, with a placeholder `{error}` for the cause.

    Raises DataError, with `advice`, for a damaged file, and FileNotFoundError for a missing one.
    """
    try:
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(f.read(size))
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        metadata = header.pop("__metadata__", {})
        arrays = {name: _mapped(data, 8 + size, entry) for name, entry in header.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
        raise DataError(f"{path}: {advice.format(error=e)}") from None
    return TensorFile(arrays, metadata)


def _mapped(data: mmap.mmap, start: int, entry: Mapping[str, object]) -> np.ndarray:
    dtype, shape, offsets = DTYPES[str(entry["dtype"])], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError("the header has no shape or no offsets")
    if min(shape, default=0) < 0 or offsets[0] < 0:
        raise ValueError("the header has a negative number")
    if 0 in shape:  # numpy reads no empty array from a buffer
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype, math.prod(shape), start + offsets[0]).reshape(shape)
