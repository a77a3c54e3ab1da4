"""The outputs of teachers on the training rows, held in memory. `teacher_cache` computes and stores them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import Pair
from mmtune.errors import DataError


class TeacherVectors:
    """A teacher's L2-normalised embeddings of the training rows.

    vectors: {modality: embeddings [n, T]}
    vector_of_row: {modality: for each row [N], the number of its embedding, or -1 if it has none}
    """

    def __init__(
        self, name: str, vectors: Mapping[str, np.ndarray], vector_of_row: Mapping[str, np.ndarray], fingerprint: str
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.vectors = {m: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for m, v in vectors.items()}
        self.vector_of_row = {m: torch.from_numpy(np.ascontiguousarray(r, np.int64)) for m, r in vector_of_row.items()}

    @property
    def dim(self) -> int:
        """Dimension of the teacher's embeddings."""
        return next(iter(self.vectors.values())).shape[1]

    def at(self, modality: str, index: Tensor) -> Tensor:
        """Embeddings [n, T] of the dataset rows `index` [n], on the device of `index`.

        Raises DataError for a row without an embedding.
        """
        if modality not in self.vectors:
            raise DataError(
                f"teachers.{self.name}: there are no {modality} embeddings of this teacher, only {', '.join(self.vectors)}"
            )
        position = self.vector_of_row[modality][index.cpu()]
        if bool((position < 0).any()):
            row = int(index[int(torch.nonzero(position < 0)[0])])
            raise DataError(
                f"teachers.{self.name}: there is no {modality} embedding of training row number {row}; delete the teacher's "
                "stored outputs, so that they are computed again"
            )
        return self.vectors[modality][position].to(index.device)


class TeacherScores:
    """A teacher's scores of (content of a, content of b), for each pair of modalities. Pairs without a score are NaN."""

    def __init__(self, name: str, scores: Mapping[Pair, tuple[np.ndarray, np.ndarray, np.ndarray]], fingerprint: str) -> None:
        """scores: {pair of modalities: (content label of a [n], content label of b [n], score [n])}, labels as int64.

        If a pair of contents occurs several times, its last score is used.
        """
        self.name, self.fingerprint = name, fingerprint
        # (sorted labels of a, sorted labels of b, sorted keys of scored pairs, their scores)
        self._tables: dict[Pair, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
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
        """The largest number of scored candidates of any query, over both directions."""
        most = 0
        for left, right, keys, _ in self._tables.values():
            for query, size in ((keys // len(right), len(left)), (keys % len(right), len(right))):
                most = max(most, int(torch.bincount(query, minlength=size).max()))
        return most

    def between(self, pair: Pair, a: Tensor, b: Tensor) -> Tensor:
        """Scores [Q, C] of the contents a [Q] against b [C], NaN for pairs without a score, on the device of `a`."""
        is_backward = pair not in self._tables
        if is_backward:
            pair, a, b = (pair[1], pair[0]), b, a
        if pair not in self._tables:
            raise DataError(f"teachers.{self.name}: there are no scores of {pair[0]}-{pair[1]}; it has {list(self._tables)}")
        left, right, keys, values = (t.to(a.device) for t in self._tables[pair])
        i, known_a = _positions(left, a)
        j, known_b = _positions(right, b)
        at, known = _positions(keys, (i[:, None] * len(right) + j[None, :]).flatten())
        scores = torch.where(known, values[at], torch.nan).view(len(a), len(b))
        scores = torch.where(known_a[:, None] & known_b[None, :], scores, torch.nan)
        return scores.T if is_backward else scores


def _positions(table: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """For each value, return its position in a sorted table and whether the table contains it."""
    at = torch.searchsorted(table, value.contiguous()).clamp_max(len(table) - 1)
    return at, table[at] == value


Teacher = TeacherVectors | TeacherScores
