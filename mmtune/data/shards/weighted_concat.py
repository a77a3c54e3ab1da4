"""Several weighted training sets as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Row
from mmtune.data.shards.dataset import Data


class WeightedConcat:
    """Rows of several Datas one after the other, with a weight each. One set alone keeps its labels as they are.

    Groups are shared between the sets (a SKU is a SKU), ids are not: row "1" of one set is not row "1" of another.
    """

    def __init__(self, sets: Sequence[Data], weights: Sequence[float]):
        self.sets, self.weights = list(sets), list(weights)
        self.spec = " + ".join(d.spec for d in self.sets)
        self.starts = np.cumsum([0, *(len(d) for d in self.sets)])
        found = {m for d in self.sets for m in d.modalities}
        self.modalities = [m for m in modalities.names() if m in found]
        self.ids = [i for d in self.sets for i in d.ids]
        self.groups = [g for d in self.sets for g in d.groups]

        def joined(table: str, name: str, dtype: Any) -> np.ndarray:
            parts = [getattr(d, table).get(name, np.zeros(len(d), dtype)) for d in self.sets]
            return np.concatenate(parts)

        self.labels = {k: joined("labels", k, np.int64) for k in ("id", "group", *self.modalities)}
        self.present = {m: joined("present", m, bool) for m in self.modalities}
        for n in range(1, len(self.sets)):
            part = slice(self.starts[n], self.starts[n + 1])
            self.labels["id"][part] ^= np.int64(n << 40)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, i: int) -> tuple[Data, int]:
        n = int(np.searchsorted(self.starts, i, "right")) - 1
        return self.sets[n], int(i - self.starts[n])

    def read(self, i: int, modality: str) -> bytes:
        """Original bytes of one value."""
        data, row = self._find(i)
        return data.read(row, modality)

    def row(self, i: int) -> Row:
        """One row with its bytes and metadata."""
        data, row = self._find(i)
        return data.row(row)

    def meta(self, i: int) -> dict[str, Any]:
        """The other columns of one row."""
        data, row = self._find(i)
        return data.meta(row)

    def column(self, name: str) -> list[Any]:
        """One metadata column over all rows; the sets that lack it give None, but one must have it."""
        from mmtune.errors import DataError

        values: list[Any] = []
        problem: DataError | None = None
        for data in self.sets:
            try:
                values += data.column(name)
            except DataError as e:
                problem = e
                values += [None] * len(data)
        if problem is not None and all(v is None for v in values):
            raise problem
        return values

    def epoch_rows(self, rng: np.random.Generator) -> np.ndarray:
        """Row numbers of one epoch in random order: weight 1 is each row once, 2 twice, 0.5 half of them."""
        chosen = []
        for n, (data, weight) in enumerate(zip(self.sets, self.weights, strict=True)):
            whole, part = divmod(weight, 1.0)
            rows = np.arange(len(data)) + self.starts[n]
            chosen += [rows] * int(whole)
            if part > 1e-9:
                chosen.append(rng.permutation(rows)[: round(part * len(rows))])
        return rng.permutation(np.concatenate(chosen))

    @property
    def fingerprint(self) -> str:
        """Of all sets and weights."""
        return "+".join(f"{d.fingerprint}*{w:g}" for d, w in zip(self.sets, self.weights, strict=True))
