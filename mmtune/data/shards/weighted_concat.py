"""Concatenate several training sets, each with a sampling weight, to one."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmtune import modalities
from mmtune.contracts import JsonObject, Row
from mmtune.data.shards.dataset import Data, MetaValue
from mmtune.data.shards.row_table import StringColumn, concat_strings, repeated_strings
from mmtune.errors import DataError


class WeightedConcat:
    """The concatenated rows of several datasets, each with a sampling weight. Has the same interface as `Data` for training.

    Equal groups in different datasets count as the same group, because a group is e.g. a product number. Equal ids in different
    datasets count as different ids: `ids` has "1:ID" for the row of the first dataset, "2:ID" for that of the second, and the
    ids that only one dataset has as they are. So `ids` are unique. The labels of a single dataset are not changed.
    """

    def __init__(self, sets: Sequence[Data], weights: Sequence[float]):
        self.sets, self.weights = list(sets), list(weights)
        self.spec = " + ".join(d.spec for d in self.sets)
        self.starts = np.cumsum([0, *(len(d) for d in self.sets)])
        present = {m for d in self.sets for m in d.modalities}
        self.modalities = [m for m in modalities.names() if m in present]
        self._shared_ids = repeated_strings(concat_strings([d.ids for d in self.sets])) if len(self.sets) > 1 else set()
        """Ids that several datasets have."""
        self.ids = concat_strings([d.ids for d in self.sets])
        if self._shared_ids:
            ids = (f"{n}:{i}" if i in self._shared_ids else i for n, d in enumerate(self.sets, 1) for i in d.ids)
            self.ids = StringColumn(pa.array(ids, pa.large_string()))
            if repeated := repeated_strings(self.ids):
                raise DataError(
                    f"{self.spec}: two rows would have the id {min(repeated)!r}; make the ids of the training sets unique"
                )
        self.groups = concat_strings([d.groups for d in self.sets])

        def concatenate(table: str, name: str, dtype: type) -> np.ndarray:
            parts = [getattr(d, table).get(name, np.zeros(len(d), dtype)) for d in self.sets]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        self.labels = {k: concatenate("labels", k, np.int64) for k in ("id", "group", *self.modalities)}
        self.present = {m: concatenate("present", m, bool) for m in self.modalities}
        self.own_id_labels = self.labels["id"].copy() if len(self.sets) > 1 else self.labels["id"]
        """Labels of the ids as in the datasets themselves: equal ids of different datasets have equal labels."""
        for n in range(1, len(self.sets)):
            part = slice(self.starts[n], self.starts[n + 1])
            self.labels["id"][part] ^= np.int64(n << 40)  # makes equal ids of different datasets have different labels

    def __len__(self) -> int:
        return int(self.starts[-1])

    def refuse_shared_id(self, ids: Iterable[str], where: str) -> None:
        """Raise DataError if one of `ids`, which the file `where` names, is the id of rows in several datasets."""
        for row_id in self._shared_ids.intersection(ids):
            having = " and ".join(d.spec for d in self.sets if row_id in set(d.ids))
            raise DataError(f"{where}: several training sets have a row with id {row_id!r} ({having}); make the ids unique")

    def _set_and_row(self, i: int) -> tuple[Data, int]:
        n = int(np.searchsorted(self.starts, i, "right")) - 1
        return self.sets[n], int(i - self.starts[n])

    def read(self, i: int, modality: str) -> bytes:
        """Read the encoded bytes of row i's value of `modality`."""
        data, row = self._set_and_row(i)
        return data.read(row, modality)

    def row(self, i: int) -> Row:
        """Read row i with all its values."""
        data, row = self._set_and_row(i)
        return data.row(row)

    def meta(self, i: int) -> JsonObject:
        """The metadata of row i."""
        data, row = self._set_and_row(i)
        return data.meta(row)

    def column(self, name: str) -> list[MetaValue]:
        """The values of a metadata column for all rows; None in datasets without it. Raises DataError if no dataset has it."""
        values: list[MetaValue] = []
        error: DataError | None = None
        for data in self.sets:
            try:
                values += data.column(name)
            except DataError as e:
                error = e
                values += [None] * len(data)
        if error is not None and all(v is None for v in values):
            raise error
        return values

    def stored_bytes(self, modality: str) -> np.ndarray:
        """Size in bytes of every row's value of `modality`, int64 [N]; 0 for a row without one. Raises DataError if none has one."""
        if modality not in self.modalities:
            raise DataError(f"data.batches.modality: {self.spec} has no {modality!r}; it has {', '.join(self.modalities)}")
        return np.concatenate([d.stored_bytes(modality) for d in self.sets])

    def epoch_rows(self, rng: np.random.Generator) -> np.ndarray:
        """The row numbers of one epoch in random order: rows of a dataset with weight 2 occur twice, with 0.5 a random half of them."""
        chosen = []
        for n, (data, weight) in enumerate(zip(self.sets, self.weights, strict=True)):
            times, fraction = divmod(weight, 1.0)
            rows = np.arange(len(data)) + self.starts[n]
            chosen += [rows] * int(times)
            if fraction > 1e-9:
                chosen.append(rng.permutation(rows)[: round(fraction * len(rows))])
        return rng.permutation(np.concatenate(chosen))

    @property
    def fingerprint(self) -> str:
        """The fingerprints and weights of all datasets, as one string."""
        return "+".join(f"{d.fingerprint}*{w:g}" for d, w in zip(self.sets, self.weights, strict=True))


def refuse_shared_ids(data: Data | WeightedConcat, ids: Iterable[str], where: str | Path) -> None:
    """Raise DataError if one of `ids`, which the file `where` names, is the id of rows in several training sets."""
    if isinstance(data, WeightedConcat):
        data.refuse_shared_id(ids, str(where))
