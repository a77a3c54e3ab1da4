"""Outputs of teachers on the training rows, in memory, looked up by row or by content. `teacher_cache` computes them once."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import Pair
from mmtune.errors import DataError


class TeacherVectors:
    """A teacher's unit vectors of the training rows: vectors[m] [n, T], vector_of_row[m] [N] row number -> vector, or -1."""

    def __init__(
        self, name: str, vectors: Mapping[str, np.ndarray], vector_of_row: Mapping[str, np.ndarray], fingerprint: str
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.vectors = {m: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for m, v in vectors.items()}
        self.vector_of_row = {m: torch.from_numpy(np.ascontiguousarray(r, np.int64)) for m, r in vector_of_row.items()}

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        return next(iter(self.vectors.values())).shape[1]

    def at(self, modality: str, index: Tensor) -> Tensor:
        """[n, T] vectors of dataset rows `index` [n], on its device. DataError where the teacher has none."""
        if modality not in self.vectors:
            raise DataError(f"teachers.{self.name}: has no {modality} vectors; it has {', '.join(self.vectors)}")
        position = self.vector_of_row[modality][index.cpu()]
        if bool((position < 0).any()):
            row = int(index[int(torch.nonzero(position < 0)[0])])
            raise DataError(
                f"teachers.{self.name}: has no {modality} vector of training row number {row}; compute its outputs again"
            )
        return self.vectors[modality][position].to(index.device)


class TeacherScores:
    """A teacher's scores of (content of a, content of b), by pair of modalities; pairs that it did not score are NaN."""

    def __init__(self, name: str, scores: Mapping[Pair, tuple[np.ndarray, np.ndarray, np.ndarray]], fingerprint: str) -> None:
        """scores: pair -> (label of a [n] int64, label of b [n] int64, score [n]); of a repeated pair the last score counts."""
        self.name, self.fingerprint = name, fingerprint
        self._tables: dict[Pair, tuple[Tensor, Tensor, Tensor, Tensor]] = {}  # labels of a, of b, pair keys, scores; sorted
        for pair, (a, b, score) in scores.items():
            if not np.isfinite(score).all():
                at = int(np.flatnonzero(~np.isfinite(score))[0])
                raise DataError(
                    f"teachers.{name}: score number {at} of {pair[0]}-{pair[1]} is {score[at]}, which is not a number"
                )
            left, right = np.unique(a), np.unique(b)
            key = np.searchsorted(left, a) * np.int64(len(right)) + np.searchsorted(right, b)
            _, last = np.unique(key[::-1], return_index=True)
            last = len(key) - 1 - last
            arrays = left, right, key[last], score[last].astype(np.float32)
            left_labels, right_labels, keys, values = (torch.from_numpy(np.ascontiguousarray(x)) for x in arrays)
            self._tables[pair] = left_labels, right_labels, keys, values

    def max_candidates(self) -> int:
        """The number of scored candidates of the query that has most, in either direction."""
        most = 0
        for left, right, keys, _ in self._tables.values():
            for query, size in ((keys // len(right), len(left)), (keys % len(right), len(right))):
                most = max(most, int(torch.bincount(query, minlength=size).max()))
        return most

    def between(self, pair: Pair, a: Tensor, b: Tensor) -> Tensor:
        """[Q, C] scores of contents a [Q] and b [C], NaN where there is none, on their device."""
        is_backward = pair not in self._tables
        if is_backward:
            pair, a, b = (pair[1], pair[0]), b, a
        if pair not in self._tables:
            raise DataError(f"teachers.{self.name}: has no scores of {pair[0]}-{pair[1]}; it has {list(self._tables)}")
        left, right, keys, values = (t.to(a.device) for t in self._tables[pair])
        i, known_a = _positions(left, a)
        j, known_b = _positions(right, b)
        at, known = _positions(keys, (i[:, None] * len(right) + j[None, :]).flatten())
        scores = torch.where(known, values[at], torch.nan).view(len(a), len(b))
        scores = torch.where(known_a[:, None] & known_b[None, :], scores, torch.nan)
        return scores.T if is_backward else scores


def _positions(table: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(position, whether it is there) of each value in a sorted table."""
    at = torch.searchsorted(table, value.contiguous()).clamp_max(len(table) - 1)
    return at, table[at] == value


Teacher = TeacherVectors | TeacherScores
