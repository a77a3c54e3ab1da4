"""Arrays of vectors that a search can read: a whole array, or selected rows that are gathered only when they are read."""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from mmtune.errors import DataError

ROWS_PER_BLOCK = 8192
"""Number of rows read at a time, so that their float64 copies stay near the size of the processor's cache."""

RowIndex: TypeAlias = slice | np.ndarray


class Vectors(Protocol):
    """A float32 array [N, D], or an object that returns rows of such an array when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: RowIndex, /) -> np.ndarray: ...


class GatheredRows:
    """The rows `index` [M] of an array [N, D], gathered when they are read, so that the array is not copied."""

    def __init__(self, array: np.ndarray, index: np.ndarray):
        self.array, self.index = array, index
        self.shape = (len(index), array.shape[1])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: RowIndex) -> np.ndarray:
        return self.array[self.index[key]]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return self.array[self.index].astype(dtype or np.float32, copy=False)


def array_and_index(vectors: np.ndarray | GatheredRows) -> tuple[np.ndarray, np.ndarray]:
    """Return (array [N, D], index [M]) such that vector i is array[index[i]]."""
    if isinstance(vectors, GatheredRows):
        return vectors.array, vectors.index
    return vectors, np.arange(len(vectors))


def normalize_rows(x_ND: np.ndarray, name: str = "vectors") -> np.ndarray:
    """L2-normalise rows, as float32. Returns the same array if they already are; zero rows stay zero.

    Raises DataError, starting with `name`, if a row holds NaN or infinity.
    """
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    norms = np.empty(len(x_ND))
    for start in range(0, len(x_ND), ROWS_PER_BLOCK):
        block = x_ND[start : start + ROWS_PER_BLOCK].astype(np.float64)
        norms[start : start + ROWS_PER_BLOCK] = np.sqrt((block * block).sum(1))
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise DataError(f"{name}: {len(bad)} of {len(norms)} vectors contain NaN or infinity, the first at position {bad[0]}")
    off = (np.abs(norms - 1) > 1e-4) & (norms > 0)
    if off.any():
        x_ND = (x_ND / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
    return x_ND
