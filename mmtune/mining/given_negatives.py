"""Negatives that the user gives with the data: found, matched with the rows, guarded, counted, and drawn for the batches.

They come from the file negatives.parquet that `mmtune pack` writes beside the shards, and from files of the user's own.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mmtune.contracts import Pair, direction
from mmtune.data.identity_labels import mix_labels
from mmtune.data.remote.remote_files import cache_identity, info_if_exists, stamp_of
from mmtune.data.shards import shard_cache
from mmtune.data.shards.locate import NEGATIVES, is_remote
from mmtune.data.shards.weighted_concat import refuse_shared_ids
from mmtune.errors import DataError, TrainingError
from mmtune.mining.batch_negatives import BatchNegatives
from mmtune.mining.negatives_file import NegativesFile, read_negatives
from mmtune.relevance.judgments import Verdict
from mmtune.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

Draw: TypeAlias = Callable[[np.ndarray], Mapping[str, np.ndarray] | None]
"""Function of a batch's rows: {direction: int64 [2, n], (position in the batch, negative row)}, or None."""
PER_QUERY = 4
"""Default limit of the negatives of a query that join its batch; a query with more draws others in each epoch."""
SHOWN = 3
"""Number of unknown rows that a message names."""


@dataclass
class GivenNegatives:
    """The given negatives of all rows, as row numbers of the data.

    pairs: direction -> int32 [n, 2], (query row, negative row), without those that are counted below
    unknown: number of pairs with an id that is not in the data
    first_unknown: file and row of the first of them
    positives: direction -> number of pairs whose negative is a positive of the query: same row, group or content
    missing: direction -> number of pairs whose rows lack its modalities
    unused: direction -> number of pairs in directions that are not trained
    notes: messages about single files
    """

    pairs: dict[str, np.ndarray] = field(default_factory=dict)
    unknown: int = 0
    first_unknown: list[str] = field(default_factory=list)
    positives: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Direction -> number of pairs that are used."""
        return {name: len(pairs) for name, pairs in self.pairs.items()}

    def lines(self) -> list[str]:
        """What is used and what is not, one line each, for the user."""
        used = ", ".join(f"{n:,} negatives used in {name}" for name, n in self.counts.items()) or "no negative is used"
        unknown = f"; {self.unknown:,} name unknown rows ({', '.join(self.first_unknown)})" if self.unknown else ""
        lines = [used + unknown]
        for name, n in self.positives.items():
            lines.append(f"{n:,} in {name} are not used: the negative is a positive of the query (same row, group or content)")
        for name, n in self.missing.items():
            lines.append(f"{n:,} in {name} are not used: their rows lack one of these modalities")
        for name, n in self.unused.items():
            lines.append(f"{n:,} in {name} are not used: the recipe does not train this direction (key `pairs`)")
        return [*lines, *self.notes]

    def verdicts(self, ids: Sequence[str]) -> list[Verdict]:
        """The pairs as negative verdicts, which mining trusts more than its guards. ids: the row ids of the data."""
        return [Verdict(ids[q], ids[n], False, name) for name, rows in self.pairs.items() for q, n in rows.tolist()]

    def only_negatives(self, data: "Data | WeightedConcat") -> np.ndarray:
        """bool [N]: rows that are nothing but negatives: they have a single value and no group."""
        negative = np.zeros(len(data), bool)
        for rows in self.pairs.values():
            negative[rows[:, 1]] = True
        for rows in self.pairs.values():
            negative[rows[:, 0]] = False
        return negative & (data.labels["group"] == 0) & (np.sum(list(data.present.values()), axis=0) == 1)

    def sha256(self) -> str:
        """Hash of the pairs, by which a resumed run notices other negatives."""
        digest = hashlib.sha256()
        for name in sorted(self.pairs):
            digest.update(f"{name} {self.pairs[name].shape}".encode() + np.ascontiguousarray(self.pairs[name]).tobytes())
        return digest.hexdigest()


def files_beside(data: "Data | WeightedConcat") -> list[tuple[Path, int]]:
    """Find the negatives.parquet files beside the shards: [(file, number of the training set)]."""
    sets: Sequence[Data] = getattr(data, "sets", [data])
    folders = {(s.url.rpartition("/")[0], n): None for n, of_set in enumerate(sets) for s in of_set.shards}
    found = [(_file_in(folder), n) for folder, n in folders]
    return [(path, n) for path, n in found if path is not None]


def _file_in(folder: str) -> Path | None:
    """The file of negatives in a directory, or None if there is none; from a URL it is downloaded into the cache."""
    if not is_remote(folder):
        path = Path(folder.removeprefix("file://")) / NEGATIVES
        return path if path.exists() else None
    url = f"{folder}/{NEGATIVES}"
    info = info_if_exists(url)
    return None if info is None else Path(shard_cache.fetch(url, cache_identity(url), stamp_of(info), info.get("size")))


def load_given(
    data: "Data | WeightedConcat", files: Iterable[str | Path] = (), pairs: Sequence[Pair] | None = None, beside: bool = True
) -> GivenNegatives | None:
    """Read all given negatives of the data, or None if there are none.

    files: files of the user's own
    pairs: the trained pairs; None means all pairs that the data have
    beside: whether to read the files beside the shards as well

    Raises DataError if a file cannot be read, or if none of its pairs is about two rows of the data.
    """
    tables: list[tuple[Path, int | None]] = [(Path(f), None) for f in files]
    tables += files_beside(data) if beside else []
    if not tables:
        return None
    out, collected, find = GivenNegatives(), dict[str, list[np.ndarray]](), _RowFinder(data)
    directions = trained_directions(pairs if pairs is not None else _all_pairs(data))
    for path, number in tables:
        file = read_negatives(path)
        rows = find(file, number, path)
        known = (rows >= 0).all(1)
        unknown = np.flatnonzero(~known)
        out.unknown += len(unknown)
        shown = [f"{path} row {file.row[i]}: {file.query_ids[i]!r}, {file.negative_ids[i]!r}" for i in unknown[:SHOWN]]
        out.first_unknown += shown[: SHOWN - len(out.first_unknown)]
        if len(file) and not known.any():
            raise DataError(
                f"{path}: none of its {len(file)} pairs has both rows in {data.spec} (first: {shown[0]}); ids must be row ids"
            )
        named = np.array(file.directions, object)
        for name in dict.fromkeys(named[known].tolist()):
            of_name = rows[known & (named == name)]
            for used in [name] if name else directions:
                collected.setdefault(used, []).append(of_name)
        if file.unused and len(file):
            out.notes.append(
                f"{path}: the column {file.unused[0]!r} is not used, every pair counts the same; to train on scores of pairs, "
                "make the file a teacher (recipe key teachers.NAME.scores)"
            )
    for name, found in collected.items():
        _keep(out, name, np.concatenate(found).astype(np.int32), data, directions)
    return out


def trained_directions(pairs: Sequence[Pair]) -> list[str]:
    """Both directions of every pair, "a->b"."""
    return list(dict.fromkeys(d for a, b in pairs for d in (direction(a, b), direction(b, a))))


def _all_pairs(data: "Data | WeightedConcat") -> list[Pair]:
    names = data.modalities
    between = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [*between, *((m, m) for m in names)]


class _RowFinder:
    """Finds the two rows of each pair: in the training set of the file, else in the one set that has both, else by unique ids."""

    def __init__(self, data: "Data | WeightedConcat"):
        self.data, sets = data, getattr(data, "sets", [data])
        self.row_of_id = {row_id: i for i, row_id in enumerate(data.ids)}
        self.of_sets: list[dict[str, int]] = []
        start = 0
        for of_set in sets:
            self.of_sets.append({row_id: start + i for i, row_id in enumerate(of_set.ids)})
            start += len(of_set)

    def __call__(self, file: NegativesFile, number: int | None, path: Path) -> np.ndarray:
        """Return int64 [n, 2], (query row, negative row), -1 for unknown ids.

        number: the training set that the file belongs to, None for a file of the user's own

        Raises DataError for a pair that could be about rows of several training sets.
        """
        if number is not None or len(self.of_sets) == 1:
            return _rows(file, self.of_sets[number or 0])
        found = np.stack([_rows(file, of_set) for of_set in self.of_sets])
        both: np.ndarray = np.min(found, axis=2) >= 0
        sets: np.ndarray = np.sum(both, axis=0)
        rows = np.where((sets > 0)[:, None], found[both.argmax(0), np.arange(len(file))], _rows(file, self.row_of_id))
        known_somewhere: np.ndarray = np.max(found, axis=0) >= 0
        ambiguous = (sets > 1) | ((rows < 0) & known_somewhere).any(1)
        for i in np.flatnonzero(ambiguous)[:1]:
            refuse_shared_ids(self.data, (file.query_ids[i], file.negative_ids[i]), f"{path} row {file.row[i]}")
        return rows


def _rows(file: NegativesFile, row_of_id: Mapping[str, int]) -> np.ndarray:
    """The row numbers of the two ids of each pair, int64 [n, 2]; -1 for ids that `row_of_id` does not have."""
    sides = [[row_of_id.get(i, -1) for i in ids] for ids in (file.query_ids, file.negative_ids)]
    return np.array(sides, np.int64).T.reshape(-1, 2)


def _keep(out: GivenNegatives, name: str, rows: np.ndarray, data: "Data | WeightedConcat", trained: Sequence[str]) -> None:
    """Add the pairs of one direction to `out`, or count why they are not used."""
    if name not in trained:
        out.unused[name] += len(rows)
        return
    a, _, b = name.partition("->")
    has = (
        data.present[a][rows[:, 0]] & data.present[b][rows[:, 1]]
        if {a, b} <= set(data.modalities)
        else np.zeros(len(rows), bool)
    )
    if not has.all():
        out.missing[name] += int((~has).sum())
    rows = rows[has]
    positive = are_positives(rows, a, b, data)
    if positive.any():
        out.positives[name] += int(positive.sum())
    rows = rows[~positive]
    if len(rows):
        _, first = np.unique(rows, axis=0, return_index=True)
        out.pairs[name] = rows[np.sort(first)]


def are_positives(rows: np.ndarray, a: str, b: str, data: "Data | WeightedConcat") -> np.ndarray:
    """bool [n]: whether the negative's content of modality b is a positive of the query's content of modality a, anywhere in the data.

    That is so if some row has both contents, if the contents occur in rows of one group, or if both are the same content.
    rows: int [n, 2], (query row, negative row)
    """
    query, candidate = (_contents(data, m) for m in (a, b))
    group, every = data.labels["group"], np.arange(len(data))
    q, c = query[rows[:, 0]], candidate[rows[:, 1]]
    positive = q == c if a == b else np.zeros(len(rows), bool)
    both = data.present[a] & data.present[b] if a != b else np.zeros(len(every), bool)
    positive |= np.isin(mix_labels(q, c), mix_labels(query[both], candidate[both]))
    grouped = {m: data.present[m] & (group != 0) for m in (a, b)}
    in_group = mix_labels(group[grouped[b]], candidate[grouped[b]])
    queries, groups = np.unique(np.stack([query[grouped[a]], group[grouped[a]]]), axis=1)
    start, stop = (np.searchsorted(queries, q, side) for side in ("left", "right"))
    for nth in range(int((stop - start).max(initial=0))):  # a content can occur in several groups
        has = start + nth < stop
        positive[has] |= np.isin(mix_labels(groups[start[has] + nth], c[has]), in_group)
    return positive


def _contents(data: "Data | WeightedConcat", modality: str) -> np.ndarray:
    """The content labels of all rows; a row without one gets a label of its own."""
    label = data.labels[modality]
    return np.where(label == 0, -1 - np.arange(len(data)), label)


class GivenDraws:
    """Supplies the training loop with the given negatives of a batch.

    plan(epoch): the batches of `plain`; remembers the epoch, on which the draw depends
    extra(rows): the given negatives that join a batch, together with those of `other`
    """

    def __init__(
        self,
        given: GivenNegatives,
        data: "Data | WeightedConcat",
        plain: Callable[[int], Sequence[np.ndarray]],
        per_query: int | None,
        seed: int,
        other: Draw | None = None,
    ):
        self.negatives = BatchNegatives.of_pairs(given.pairs, data)
        self.plain, self.seed, self.other, self.epoch = plain, seed, other, 0
        most = {name: self.negatives.most(name) for name in given.pairs}
        self.per_query = {name: min(n, PER_QUERY) if per_query is None else min(n, per_query) for name, n in most.items()}

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the batches of an epoch."""
        self.epoch = epoch
        return self.plain(epoch)

    def extra(self, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """Return the negatives that join the batch `rows`: {direction: int64 [2, n]}; a pair that is also mined joins once."""
        out = dict(self.negatives.draw(rows, self.per_query, self.seed, self.epoch))
        for name, mined in ((self.other(rows) if self.other else None) or {}).items():
            out[name] = np.unique(np.concatenate([out[name], mined], axis=1), axis=1) if name in out else mined
        return out or None


def record_given(path: Path, given: GivenNegatives, resume: bool) -> None:
    """Write the hash and the counts of the given negatives to `path`. Raises TrainingError if a resumed run had others."""
    document = {"sha256": given.sha256(), "used": given.counts}
    if resume and path.exists() and read_json(path)["sha256"] != document["sha256"]:
        raise TrainingError(f"{path}: the run to resume had other negatives; give it the same ones, or choose another run.dir")
    write_json(path, document)
