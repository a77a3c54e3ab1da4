"""The embedding cache, keyed by content hash, in COLL/vectors/FINGERPRINT/MODALITY/*.safetensors.

A model embeds each content only once. A file is called a block; it holds "keys" int64 [n] (content hashes, called labels) and
"vectors" float32 [n, D], with the model fingerprint in its header. Blocks are written atomically (`mmtune.runtime.files`) and
never changed, so an interruption loses at most the block in progress. A key may occur in several blocks, with the same vector.
A block with the fingerprint of another model is rejected.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmtune.errors import DataError, ModelError
from mmtune.index.tensor_files import map_tensors
from mmtune.runtime.files import write_bytes

MERGED_ROWS = 65_536
"""Approximate number of rows of a merged block."""
MERGE_FROM = 8
"""Blocks are merged only if there are at least this many small ones."""
ROW_BITS = 32
"""The address of a row is (number of its file << ROW_BITS) + its row number in the file."""


class VectorCache:
    """The cached embeddings of one model. An object must not be shared by threads; several processes may add blocks at once."""

    def __init__(self, directory: Path, fingerprint: str, dim: int):
        self.directory, self.fingerprint, self.dim = directory, fingerprint, dim
        self._blocks: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
        self._sorted: dict[str, tuple[frozenset[Path], np.ndarray, np.ndarray, list[Path]]] = {}

    def _block(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Return (keys [n], memory-mapped vectors [n, D]) of a block.

        Raises DataError for a damaged block, and ModelError for a block of another model.
        """
        if path not in self._blocks:
            file = map_tensors(path, "a damaged block of vectors ({error}); remove it, it will be embedded again")
            fingerprint = file.metadata.get("fingerprint")
            if fingerprint != self.fingerprint:
                raise ModelError(f"{path}: vectors of another model ({fingerprint}, not {self.fingerprint}); remove that file")
            if not {"keys", "vectors"} <= set(file.arrays):
                raise DataError(f"{path}: not a block of vectors; remove it, it will be embedded again")
            keys, vectors = file.arrays["keys"], file.arrays["vectors"]
            if vectors.shape != (len(keys), self.dim):
                raise DataError(f"{path}: vectors {vectors.shape}, not [{len(keys)}, {self.dim}]; remove that file")
            self._blocks[path] = (keys, vectors)
        return self._blocks[path]

    def _index(self, modality: str) -> tuple[np.ndarray, np.ndarray, list[Path]]:
        """Return (ascending keys, address of each key's row, files)."""
        for _ in range(10):
            try:
                return self._scan(modality)
            except FileNotFoundError:
                continue  # another process merged blocks after the directory was listed
        raise DataError(f"{self.directory / modality}: the blocks kept changing while they were read; try again")

    def _scan(self, modality: str) -> tuple[np.ndarray, np.ndarray, list[Path]]:
        files = sorted(p for p in (self.directory / modality).glob("*.safetensors") if not p.name.startswith("."))
        known = self._sorted.get(modality)
        if known is None or known[0] != frozenset(files):
            blocks = [np.empty(0, np.int64), *(self._block(p)[0] for p in files)]
            addresses = [np.empty(0, np.int64), *(np.arange(len(k)) + (i << ROW_BITS) for i, k in enumerate(blocks[1:]))]
            keys, rows = np.concatenate(blocks), np.concatenate(addresses)
            order = np.argsort(keys, kind="stable")
            known = self._sorted[modality] = (frozenset(files), keys[order], rows[order], files)
        return known[1:]

    def keys(self, modality: str) -> np.ndarray:
        """Return the content hashes that have a vector, ascending."""
        return self._index(modality)[0]

    def missing(self, modality: str, labels: np.ndarray) -> np.ndarray:
        """Return bool [N], True where the content has no cached vector. labels: content hashes, int64 [N]."""
        return missing_from(self.keys(modality), labels)

    def read(self, modality: str, labels: np.ndarray) -> np.ndarray:
        """Return the vectors, float32 [N, D], of content hashes. Raises DataError when a vector is missing."""
        absent = self.missing(modality, labels)
        if absent.any():
            raise DataError(f"{self.directory / modality}: {int(absent.sum())} vectors are missing; build the version again")
        keys, addresses, files = self._index(modality)
        address = addresses[np.searchsorted(keys, labels)]
        number, row = address >> ROW_BITS, address & (2**ROW_BITS - 1)
        out = np.empty((len(labels), self.dim), np.float32)
        for i in np.unique(number).tolist():
            in_file = number == i
            out[in_file] = self._block(files[i])[1][row[in_file]]
        return out

    def write(self, modality: str, labels: np.ndarray, vectors_ND: np.ndarray, name: str | None = None) -> None:
        """Write one block atomically; it is durable when this returns. name: file name without suffix; default: a new one."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {
            "keys": np.asarray(labels, np.int64),
            "vectors": np.ascontiguousarray(vectors_ND, np.float32),
        }
        path = self.directory / modality / f"{name or uuid.uuid4().hex}.safetensors"
        write_bytes(path, save(arrays, {"fingerprint": self.fingerprint, "modality": modality}))

    def merge(self, modality: str) -> None:
        """Merge small blocks into large ones.

        The small blocks are removed only after the large one is written, so an interruption loses nothing.
        """
        small = [p for p in self._index(modality)[2] if len(self._block(p)[0]) < MERGED_ROWS // 2]
        for group in _groups(small, [len(self._block(p)[0]) for p in small]):
            parts = [self._block(p) for p in group]
            self.write(modality, np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
            for path in group:
                self._blocks.pop(path, None)
                path.unlink(missing_ok=True)


def missing_from(keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return bool [N], True for labels that are not among the ascending `keys`."""
    if not len(keys):
        return np.ones(len(labels), bool)
    return keys[np.minimum(np.searchsorted(keys, labels), len(keys) - 1)] != labels


def _groups(paths: Sequence[Path], sizes: Sequence[int]) -> list[list[Path]]:
    """Split files into groups to merge: about MERGED_ROWS rows each; groups of fewer than MERGE_FROM files are left out."""
    groups, current, total = list[list[Path]](), list[Path](), 0
    for path, size in zip(paths, sizes, strict=True):
        current.append(path)
        total += size
        if total >= MERGED_ROWS:
            groups.append(current)
            current, total = [], 0
    groups.append(current)
    return [g for g in groups if len(g) >= MERGE_FROM]
