"""Vectors by content, COLL/vectors/FINGERPRINT/MODALITY/*.safetensors: what a model embedded once it never embeds again.

A file is a block: "keys" int64 [n] (labels of the content) and "vectors" float32 [n, D], with the fingerprint in its header.
Blocks appear whole (mmtune.runtime.files) and are never changed; a killed job loses at most the block it was working on. The same key
in two blocks is the same vector. A file of another fingerprint is refused, wherever it was copied from.
"""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmtune.errors import DataError, ModelError
from mmtune.runtime.files import write_bytes

MERGED = 65_536  # rows of a merged block


class VectorCache:
    """The blocks of one fingerprint. One reader a thread; several writers at once may add blocks."""

    def __init__(self, directory: Path, fingerprint: str, dim: int):
        self.directory, self.fingerprint, self.dim = directory, fingerprint, dim
        self._open: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
        self._sorted: dict[str, tuple[frozenset[Path], np.ndarray, np.ndarray, list[Path]]] = {}

    def _block(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """(keys [n], vectors [n, D] mapped). DataError for a broken file, ModelError for another fingerprint."""
        if path not in self._open:
            try:
                with open(path, "rb") as f:
                    size = int.from_bytes(f.read(8), "little")
                    header = json.loads(f.read(size))
                mark = header.get("__metadata__", {}).get("fingerprint")
                if mark != self.fingerprint:
                    raise ModelError(f"{path}: vectors of another model ({mark}, not {self.fingerprint}); remove that file")
                start, parts = 8 + size, []
                for name, kind in (("keys", np.int64), ("vectors", np.float32)):
                    shape, offset = header[name]["shape"], header[name]["data_offsets"][0]
                    parts.append(np.memmap(path, kind, "r", start + offset, tuple(shape)))
            except FileNotFoundError:
                raise
            except (OSError, ValueError, KeyError) as e:
                raise DataError(f"{path}: not a whole block of vectors ({e}); remove it, it will be embedded again") from None
            if parts[1].shape != (len(parts[0]), self.dim):
                raise DataError(f"{path}: vectors {parts[1].shape}, not [{len(parts[0])}, {self.dim}]; remove that file")
            self._open[path] = (np.asarray(parts[0]), parts[1])
        return self._open[path]

    def _index(self, modality: str) -> tuple[np.ndarray, np.ndarray, list[Path]]:
        """(keys ascending, file * 2**32 + row of each, files)."""
        for _ in range(10):
            try:
                return self._look(modality)
            except FileNotFoundError:
                continue  # another process merged blocks between two looks
        raise DataError(f"{self.directory / modality}: its blocks change faster than they can be read")

    def _look(self, modality: str) -> tuple[np.ndarray, np.ndarray, list[Path]]:
        files = sorted(p for p in (self.directory / modality).glob("*.safetensors") if not p.name.startswith("."))
        known = self._sorted.get(modality)
        if known is None or known[0] != frozenset(files):
            keys = [np.empty(0, np.int64), *(self._block(p)[0] for p in files)]
            places = [np.empty(0, np.int64), *(np.arange(len(k)) + (i << 32) for i, k in enumerate(keys[1:]))]
            every, place = np.concatenate(keys), np.concatenate(places)
            order = np.argsort(every, kind="stable")
            known = self._sorted[modality] = (frozenset(files), every[order], place[order], files)
        return known[1:]

    def keys(self, modality: str) -> np.ndarray:
        """Labels of what is there, ascending."""
        return self._index(modality)[0]

    def missing(self, modality: str, labels: np.ndarray) -> np.ndarray:
        """bool [N]: whose vectors are not there yet."""
        keys = self._index(modality)[0]
        at = np.searchsorted(keys, labels)
        return keys[np.minimum(at, len(keys) - 1)] != labels if len(keys) else np.ones(len(labels), bool)

    def read(self, modality: str, labels: np.ndarray) -> np.ndarray:
        """float32 [N, D] in the order of `labels`. DataError when one is missing."""
        if self.missing(modality, labels).any():
            raise DataError(f"{self.directory / modality}: {int(self.missing(modality, labels).sum())} vectors are missing")
        keys, places, files = self._index(modality)
        found = places[np.searchsorted(keys, labels)]
        number, row = found >> 32, found & 0xFFFFFFFF
        out = np.empty((len(labels), self.dim), np.float32)
        for i in np.unique(number).tolist():
            here = number == i
            out[here] = self._block(files[i])[1][row[here]]
        return out

    def write(self, modality: str, labels: np.ndarray, vectors_ND: np.ndarray, name: str | None = None) -> None:
        """Publish one block (`name`: its file's, by default one that no other has); durable when it returns."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {
            "keys": np.asarray(labels, np.int64),
            "vectors": np.ascontiguousarray(vectors_ND, np.float32),
        }
        path = self.directory / modality / f"{name or uuid.uuid4().hex}.safetensors"
        write_bytes(path, save(arrays, {"fingerprint": self.fingerprint, "modality": modality}))

    def merge(self, modality: str) -> None:
        """Small blocks into large ones: the large one appears before the small ones go, so a kill loses nothing."""
        small = [p for p in self._index(modality)[2] if len(self._block(p)[0]) < MERGED // 2]
        for group in _groups(small, [len(self._block(p)[0]) for p in small]):
            parts = [self._block(p) for p in group]
            self.write(modality, np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
            for path in group:
                self._open.pop(path, None)
                path.unlink(missing_ok=True)


def _groups(paths: Sequence[Path], sizes: Sequence[int]) -> list[list[Path]]:
    """Runs of at least 8 files and about MERGED rows."""
    groups, current, total = [], [], 0
    for path, size in zip(paths, sizes, strict=True):
        current.append(path)
        total += size
        if total >= MERGED:
            groups.append(current)
            current, total = [], 0
    groups.append(current)
    return [g for g in groups if len(g) >= 8]
