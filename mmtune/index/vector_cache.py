"""The embedding cache, keyed by content hash, in COLL/vectors/FINGERPRINT/MODALITY/*.safetensors.

A model embeds each content only once. A file is called a block; it holds "keys" int64 [n] (content hashes, called labels),
"vectors" float32 [n, D] and "checks" int64 [n] (`row_checksums`), with the model fingerprint in its header. Blocks are written
atomically (`mmtune.runtime.files`), so an interruption loses at most the block in progress. A key may occur in several blocks,
with the same vector. A block with the fingerprint of another model is rejected. A row whose checksum is wrong is never returned:
it is removed from its block, and counts as missing. Blocks of earlier versions of mmtune have no checksums.
"""

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtune.errors import DataError, ModelError
from mmtune.index.row_checksums import row_checksums
from mmtune.index.tensor_files import map_tensors
from mmtune.runtime.files import write_bytes

MERGED_ROWS = 65_536
"""Approximate number of rows of a merged block."""
MERGE_FROM = 8
"""Blocks are merged only if there are at least this many small ones."""
MERGE_LIMITS = (8, 64, 512, 4096, MERGED_ROWS // 2)
"""Blocks of fewer rows than a limit are merged with each other, the lowest limit first: after any number of one-row blocks there
are at most MERGE_FROM - 1 blocks for each limit, and each row was written again at most once for each limit."""


@dataclass(frozen=True, slots=True)
class CacheBlock:
    """One block: keys int64 [n], vectors float32 [n, D], checksums int64 [n] (None in files of earlier versions).

    order: row numbers that make the keys ascending, int64 [n]; None if they are.
    """

    keys: np.ndarray
    vectors: np.ndarray
    checks: np.ndarray | None
    order: np.ndarray | None = None

    def find(self, labels: np.ndarray) -> np.ndarray:
        """Return the row number of each label (content hash), int64 [len(labels)]; -1 where the block does not have it."""
        if not len(self.keys):
            return np.full(len(labels), -1)
        row = np.minimum(np.searchsorted(self.keys, labels, sorter=self.order), len(self.keys) - 1)
        row = row if self.order is None else self.order[row]
        return np.where(self.keys[row] == labels, row, -1)

    def damaged(self, rows: np.ndarray) -> np.ndarray:
        """Return bool [len(rows)], True for the rows (row numbers) whose checksum is wrong."""
        if self.checks is None:
            return np.zeros(len(rows), bool)
        return row_checksums(self.keys[rows], self.vectors[rows]) != self.checks[rows]

    def take(self, rows: np.ndarray) -> "CacheBlock":
        """Return a block of these rows, in memory, with ascending keys."""
        rows = rows[np.argsort(self.keys[rows], kind="stable")]
        return CacheBlock(self.keys[rows], self.vectors[rows], None if self.checks is None else self.checks[rows])


class VectorCache:
    """The cached embeddings of one model. An object must not be shared by threads; several processes may add blocks at once."""

    def __init__(self, directory: Path, fingerprint: str, dim: int):
        self.directory, self.fingerprint, self.dim = directory, fingerprint, dim
        self._blocks: dict[Path, CacheBlock] = {}
        self._files: dict[str, list[Path]] = {}  # by modality, as last listed

    def _block(self, path: Path) -> CacheBlock:
        """Return a block, memory-mapped.

        Raises DataError for a damaged block, and ModelError for a block of another model.
        """
        if path not in self._blocks:
            file = map_tensors(path, "a damaged block of vectors ({error}); remove it, it will be embedded again")
            fingerprint = file.metadata.get("fingerprint")
            if fingerprint != self.fingerprint:
                raise ModelError(f"{path}: vectors of another model ({fingerprint}, not {self.fingerprint}); remove that file")
            if not {"keys", "vectors"} <= set(file.arrays):
                raise DataError(f"{path}: not a block of vectors; remove it, it will be embedded again")
            keys, vectors, checks = file.arrays["keys"], file.arrays["vectors"], file.arrays.get("checks")
            if vectors.shape != (len(keys), self.dim) or checks is not None and checks.shape != keys.shape:
                raise DataError(f"{path}: vectors {vectors.shape}, not [{len(keys)}, {self.dim}]; remove that file")
            ascending = "ascending" in file.metadata or bool((keys[1:] >= keys[:-1]).all())
            self._blocks[path] = CacheBlock(keys, vectors, checks, None if ascending else np.argsort(keys, kind="stable"))
        return self._blocks[path]

    def _list(self, modality: str, refresh: bool = True) -> list[Path]:
        """Return the files of the blocks, and map those that are new. refresh: see `intact`."""
        if not refresh and modality in self._files:
            return self._files[modality]
        for _ in range(10):
            files = sorted(p for p in (self.directory / modality).glob("*.safetensors") if not p.name.startswith("."))
            try:
                for path in files:
                    self._block(path)
            except FileNotFoundError:
                continue  # another process merged blocks after the directory was listed
            self._files[modality] = files
            return files
        raise DataError(f"{self.directory / modality}: the blocks kept changing while they were read; try again")

    def _find(self, modality: str, labels: np.ndarray, refresh: bool = True) -> tuple[np.ndarray, np.ndarray, list[Path]]:
        """Return (number of the file [N], row number in it [N], files) of content hashes; file -1 where there is no vector."""
        files = self._list(modality, refresh)
        number, row = np.full(len(labels), -1), np.zeros(len(labels), np.int64)
        waiting = np.argsort(labels, kind="stable")  # in ascending order, neighbours are found in the same pages
        for i, path in enumerate(files):
            if not len(waiting):
                break
            found = self._block(path).find(labels[waiting])
            number[waiting[found >= 0]], row[waiting[found >= 0]] = i, found[found >= 0]
            waiting = waiting[found < 0]
        return number, row, files

    def keys(self, modality: str) -> np.ndarray:
        """Return the content hashes that have a vector, ascending."""
        return np.unique(np.concatenate([np.empty(0, np.int64), *(self._block(p).keys for p in self._list(modality))]))

    def missing(self, modality: str, labels: np.ndarray) -> np.ndarray:
        """Return bool [N], True where the content has no cached vector. labels: content hashes, int64 [N]."""
        return self._find(modality, labels)[0] < 0

    def intact(self, modality: str, labels: np.ndarray, refresh: bool = True) -> np.ndarray:
        """Return bool [N], True where the content has a cached vector whose checksum is right.

        The damaged vectors that are found are removed from the cache.

        refresh: list the blocks again; False means that blocks written since the last call need not be found.
        """
        while True:
            number, row, files = self._find(modality, labels, refresh)
            damaged = {}
            for i in np.unique(number[number >= 0]).tolist():
                rows = np.unique(row[number == i])
                if (bad := self._block(files[i]).damaged(rows)).any():
                    damaged[files[i]] = rows[bad]
            if not damaged:
                return number >= 0
            for path, rows in damaged.items():
                self._drop_rows(modality, path, rows)

    def read(self, modality: str, labels: np.ndarray) -> np.ndarray:
        """Return the vectors, float32 [N, D], of content hashes. Raises DataError when a vector is missing or damaged."""
        absent = ~self.intact(modality, labels)
        if absent.any():
            raise DataError(
                f"{self.directory / modality}: {int(absent.sum())} vectors are missing or were damaged; run the same command "
                "again to compute them, or build the version again"
            )
        number, row, files = self._find(modality, labels, refresh=False)
        out = np.empty((len(labels), self.dim), np.float32)
        for i in np.unique(number).tolist():
            in_file = number == i
            out[in_file] = self._block(files[i]).vectors[row[in_file]]
        return out

    def _drop_rows(self, modality: str, path: Path, rows: np.ndarray) -> None:
        """Remove rows (row numbers) from a block. On a read-only disk, only this object leaves them out."""
        block = self._block(path)
        kept = block.take(np.setdiff1d(np.arange(len(block.keys)), rows))
        if len(kept.keys):
            with contextlib.suppress(OSError):
                self._write_block(modality, path, kept)
            self._blocks[path] = kept
            return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        self._blocks[path] = kept

    def keep_only(self, modality: str, labels: np.ndarray) -> int:
        """Remove the vectors of all contents other than `labels` (content hashes), and return how many rows were removed.

        The caller must make sure that no other process adds or merges blocks.
        """
        removed = 0
        for path in self._list(modality):
            rows = np.flatnonzero(~np.isin(self._block(path).keys, labels))
            if len(rows):
                self._drop_rows(modality, path, rows)
                removed += len(rows)
        return removed

    def check_block(self, path: Path) -> tuple[int, int]:
        """Read every row of a block; return (number of rows, number of rows whose checksum is wrong).

        Raises DataError for an unreadable block, and ModelError for a block of another model.
        """
        block = self._block(path)
        return len(block.keys), int(block.damaged(np.arange(len(block.keys))).sum())

    def write(self, modality: str, labels: np.ndarray, vectors_ND: np.ndarray, name: str | None = None) -> None:
        """Write one block atomically; it is durable when this returns. name: file name without suffix; default: a new one."""
        order = np.argsort(labels, kind="stable")
        keys, vectors = np.asarray(labels, np.int64)[order], np.asarray(vectors_ND, np.float32)[order]
        path = self.directory / modality / f"{name or uuid.uuid4().hex}.safetensors"
        self._write_block(modality, path, CacheBlock(keys, vectors, row_checksums(keys, vectors)))

    def _write_block(self, modality: str, path: Path, block: CacheBlock) -> None:
        from safetensors.numpy import save

        arrays = {"keys": block.keys, "vectors": block.vectors} | ({} if block.checks is None else {"checks": block.checks})
        write_bytes(path, save(arrays, {"fingerprint": self.fingerprint, "modality": modality, "ascending": "keys"}))

    def merge(self, modality: str) -> None:
        """Merge small blocks into large ones (`MERGE_LIMITS`).

        The small blocks are removed only after the large one is written, so an interruption loses nothing.
        """
        files = self._list(modality)
        for limit in MERGE_LIMITS:
            small = [p for p in files if len(self._block(p).keys) < limit]
            if groups := _groups(small, [len(self._block(p).keys) for p in small]):
                for group in groups:
                    self._merge_group(modality, group)
                files = self._list(modality)

    def _merge_group(self, modality: str, group: Sequence[Path]) -> None:
        parts = [block.take(np.flatnonzero(~block.damaged(np.arange(len(block.keys))))) for block in map(self._block, group)]
        self.write(modality, np.concatenate([p.keys for p in parts]), np.concatenate([p.vectors for p in parts]))
        for path in group:
            self._blocks.pop(path, None)
            with contextlib.suppress(
                OSError
            ):  # Windows keeps a file that another process has mapped; its rows exist twice then
                path.unlink(missing_ok=True)


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
