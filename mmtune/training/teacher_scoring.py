"""Use a scorer (cross-encoder, matcher) as a teacher: score the training pairs and store the scores in Parquet parts."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.backbones.scorers import load_scorer
from mmtune.contracts import Pair, Scorer, Signal, direction
from mmtune.data.decode import decode_row
from mmtune.errors import DataError, RecipeError
from mmtune.recipe.teachers_block import ScorerTeacher
from mmtune.runtime.files import atomic_open
from mmtune.runtime.progress import Progress
from mmtune.training.teacher_outputs import TeacherScores
from mmtune.training.teacher_score_files import rows_of_pairs, score_table_columns

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat

PAIRS_PER_PART = 4096
"""Pairs in one file. A job that is killed loses at most the scores of one file."""
TILE = 64
"""Values on each side of a tile of `candidates: all`."""
MOST_PAIRS = 4_000_000
"""Maximum number of pairs for `candidates: all`, which scores every value of one modality with every value of the other."""

RowPairs = tuple[np.ndarray, np.ndarray]
"""Row numbers [n] of the first and of the second modality."""


def teacher_from_scorer(
    name: str, spec: ScorerTeacher, data: "WeightedConcat", pairs: Sequence[Pair], folder: Path, quiet: bool
) -> TeacherScores:
    """Score the candidate pairs that the recipe names, or read the scores if they are stored already."""
    scorer, fingerprint = load_scorer(spec.scorer, spec.options, f"teachers.{name}.scorer")
    scores = {}
    for pair in pairs:
        left, right = candidate_rows(spec.candidates, data, pair, f"teachers.{name}.candidates")
        stored = StoredScores(folder / f"{name}-{fingerprint[:16]}" / "-".join(pair), fingerprint, f"teachers.{name}")
        values = stored.compute(scorer, data, pair, (left, right), quiet)
        scores[pair] = data.labels[pair[0]][left], data.labels[pair[1]][right], values
    return TeacherScores(name, scores, fingerprint)


def candidate_rows(candidates: str, data: "WeightedConcat", pair: Pair, key: str) -> RowPairs:
    """Return the pairs of rows to score, with each pair of contents once. Raises RecipeError, naming `key`, for bad candidates.

    candidates: which pairs to score
        own: the two sides of each row
        all: every first side with every second side
        path of a negatives table: the own pairs and the pairs of the table
    """
    a, b = pair
    own = np.flatnonzero(data.present[a] & data.present[b])
    left, right = own, own
    if candidates == "all":
        first_a, first_b = (np.unique(data.labels[m][own], return_index=True)[1] for m in pair)
        if len(first_a) * len(first_b) > MOST_PAIRS:
            raise RecipeError(
                f"{key}: all means {len(first_a)} x {len(first_b)} pairs, more than the limit of {MOST_PAIRS:,}; name a "
                "negatives table (from mmtune mine) instead"
            )
        left, right = _all_in_tiles(own[first_a], own[first_b])
    elif candidates != "own":
        table_left, table_right = _rows_of_negatives_table(candidates, data, pair, key)
        left, right = np.concatenate([own, table_left]), np.concatenate([own, table_right])
    contents = np.stack([data.labels[a][left], data.labels[b][right]], 1)
    first_of_content = np.sort(np.unique(contents, axis=0, return_index=True)[1])
    return left[first_of_content], right[first_of_content]


def _all_in_tiles(left: np.ndarray, right: np.ndarray) -> RowPairs:
    """Return every value of `left` with every value of `right`, tile by tile, so that the pairs of a file have few different values.

    A scorer such as a cross-encoder encodes the values of the pairs that it gets once: 128 in a tile, instead of up to 4,097 in a file
    that has one value of `left` with many of `right`.
    """
    tiles = [
        np.meshgrid(left[i : i + TILE], right[j : j + TILE], indexing="ij")
        for i in range(0, len(left), TILE)
        for j in range(0, len(right), TILE)
    ]
    return np.concatenate([a.ravel() for a, _ in tiles]), np.concatenate([b.ravel() for _, b in tiles])


def _rows_of_negatives_table(path: str, data: "WeightedConcat", pair: Pair, key: str) -> RowPairs:
    """Return the (query, negative) pairs of a mined table, in both directions, as row numbers of (a, b)."""
    if not Path(path).is_file():
        raise RecipeError(f"{key}: {path!r} must be own, all, or an existing file")
    columns = score_table_columns(path, ["direction", "query_id", "negative_id"])
    columns["item_id"] = columns.pop("negative_id")
    return rows_of_pairs(columns, data, pair, path)[:2]


class StoredScores:
    """The scores of one pair of modalities, stored in Parquet parts in `folder`. key: the teacher's recipe key, for messages."""

    def __init__(self, folder: Path, fingerprint: str, key: str) -> None:
        self.folder, self.fingerprint, self.key = folder, fingerprint, key

    def compute(self, scorer: Scorer, data: "WeightedConcat", pair: Pair, rows: RowPairs, quiet: bool) -> np.ndarray:
        """Return the scores of the row pairs, float32 [n]. A part that is stored for the same pairs and scorer is read."""
        import pyarrow.parquet as pq

        scores = np.empty(len(rows[0]), np.float32)
        with Progress(f"teacher {'-'.join(pair)}", len(scores), "pairs", quiet) as progress:
            for number, start in enumerate(range(0, len(scores), PAIRS_PER_PART)):
                left, right = (x[start : start + PAIRS_PER_PART] for x in rows)
                contents = np.ascontiguousarray(np.stack([data.labels[pair[0]][left], data.labels[pair[1]][right]]))
                stamp = {"fingerprint": self.fingerprint, "pairs": hashlib.sha256(contents.tobytes()).hexdigest()[:32]}
                path = self.folder / f"part-{number:05d}.parquet"
                if not _has_stamp(path, stamp):
                    self._write_part(path, stamp, scorer, data, pair, (left, right))
                scores[start : start + PAIRS_PER_PART] = pq.read_table(path)["score"].to_numpy()
                progress.advance(len(left))
        return scores

    def _write_part(
        self, path: Path, stamp: dict[str, str], scorer: Scorer, data: "WeightedConcat", pair: Pair, rows: RowPairs
    ) -> None:
        """Score the row pairs and write them atomically. Raises DataError if scores are missing or not finite."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        signals = list(_signals(data, pair, rows))
        scores = np.asarray(scorer.score(signals), np.float32).reshape(-1)
        if len(scores) != len(signals) or not np.isfinite(scores).all():
            raise DataError(
                f"{self.key}: the scorer returned {len(scores)} scores for {len(signals)} pairs, or scores that are not finite"
            )
        names = pa.array([direction(*pair)] * len(signals), pa.string())
        ids = (pa.array([data.ids[i] for i in side], pa.string()) for side in rows)
        columns = dict(zip(("direction", "query_id", "item_id"), (names, *ids), strict=True))
        table = pa.table({**columns, "score": pa.array(scores, pa.float32())})
        with atomic_open(path) as f:
            pq.write_table(table.replace_schema_metadata(stamp), f)


def _has_stamp(path: Path, stamp: dict[str, str]) -> bool:
    """Whether the part at `path` exists and was written with this metadata."""
    import pyarrow.parquet as pq

    stored = {k.decode(): v.decode() for k, v in (pq.read_schema(path).metadata or {}).items()} if path.exists() else {}
    return {k: stored.get(k) for k in stamp} == stamp


def _signals(data: "WeightedConcat", pair: Pair, rows: RowPairs) -> Iterator[tuple[Signal, Signal]]:
    """Yield the two decoded values of each row pair. Each content is decoded once."""
    decoded: dict[tuple[str, int], Signal] = {}

    def signal(m: str, i: int) -> Signal:
        if (key := (m, int(data.labels[m][i]))) not in decoded:
            decoded[key] = decode_row(data, i, m)
        return decoded[key]

    for i, j in zip(rows[0].tolist(), rows[1].tolist(), strict=True):
        yield signal(pair[0], i), signal(pair[1], j)
