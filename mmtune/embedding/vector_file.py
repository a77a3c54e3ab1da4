"""Vectors that are made one block after another: in memory while they are few, else in a file that is mapped."""

import tempfile
from typing import IO

import numpy as np

from mmtune.data.shards import shard_cache
from mmtune.data.shards.combine_tables import writable_folder

MEMORY_BYTES = 256 << 20
"""Vectors of more bytes are written to a file."""


class VectorFile:
    """Collects float32 vectors [n, D]. The file, in the cache directory, has no name, so it never outlives the process."""

    def __init__(self, dim: int):
        self.dim, self.rows = dim, 0
        self._blocks: list[np.ndarray] = []
        self._file: IO[bytes] | None = None

    def append(self, vectors: np.ndarray) -> None:
        """Append vectors [n, D]."""
        self.rows += len(vectors)
        if self._file is None and self.rows * self.dim * 4 <= MEMORY_BYTES:
            self._blocks.append(vectors)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=writable_folder(shard_cache.root() / "rows"))
            for block in self._blocks:
                self._write(block)
            self._blocks = []
        self._write(vectors)

    def _write(self, vectors: np.ndarray) -> None:
        assert self._file is not None
        self._file.write(np.ascontiguousarray(vectors, np.float32).data)

    def array(self) -> np.ndarray:
        """All vectors, float32 [n, D], read-only."""
        if self._file is None:
            array = np.concatenate([np.zeros((0, self.dim), np.float32), *self._blocks])
            array.flags.writeable = False
            self._blocks = [array]
            return array
        self._file.flush()
        return np.memmap(self._file, np.float32, "r", shape=(self.rows, self.dim))
