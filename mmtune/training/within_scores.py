"""Scores of pairs within one modality, such as two texts and their similarity: what `pack --score` stored of `anchor,positive,score`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune.contracts import Pair, direction
from mmtune.data.shards.locate import JUDGMENTS
from mmtune.errors import RecipeError
from mmtune.losses.graded import SCORE_RANGES
from mmtune.runtime.files import read_jsonl_log
from mmtune.training.objective_spec import LossTerm
from mmtune.training.score_columns import check_values
from mmtune.training.stream_limits import FIX
from mmtune.training.teacher_outputs import TeacherScores

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat


def build_within_scores(
    terms: Sequence[LossTerm], pairs: Sequence[Pair], data: "WeightedConcat | None"
) -> dict[str, TeacherScores]:
    """Return {modality: the scores of its pairs} for the losses on scores that are taken within one modality.

    data: the training rows; None if they are streamed

    Raises RecipeError if the training data have no such scores, or are streamed.
    """
    found: dict[str, TeacherScores] = {}
    for term in terms:
        if term.family != "scored_pairs":
            continue
        for m in {a for a, b in term.pairs or pairs if a == b}:
            if data is None:
                raise RecipeError(f"{term.key}: looking up the score of two rows ([{m}, {m}]) {FIX}")
            rows = scored_rows(data, m)
            if not len(rows[2]):
                raise RecipeError(
                    f"{term.key}: within one modality ([{m}, {m}]) a score belongs to two rows, and the training data have no such scores; "
                    "pack a table such as anchor,positive,score with --score score"
                )
            left, right, scores = rows
            ids = [data.ids[i] for i in left]
            check_values(torch.from_numpy(scores), ids.__getitem__, "score", term.key, *SCORE_RANGES.get(term.loss, ()))
            a, b = data.labels[m][left], data.labels[m][right]
            table = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([scores, scores])
            found[m] = TeacherScores("scores", {(m, m): table}, "")
    return found


def scored_rows(data: "WeightedConcat", modality: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (row numbers [n], row numbers [n], scores float32 [n]) of the scored pairs within a modality, of all training sets."""
    found: list[tuple[int, int, float]] = []
    name = direction(modality, modality)
    for number, dataset in enumerate(data.sets):
        lines = [
            line
            for folder in dict.fromkeys(Path(s.path).parent for s in dataset.shards)
            if (folder / JUDGMENTS).is_file()
            for line in read_jsonl_log(folder / JUDGMENTS)
            if line.get("direction") == name and "score" in line
        ]
        row_of_id = {i: n for n, i in enumerate(dataset.ids)} if lines else {}
        start = int(data.starts[number])
        for line in lines:
            a, b = row_of_id.get(str(line["query"])), row_of_id.get(str(line["item"]))
            if a is not None and b is not None and a != b:
                found.append((start + a, start + b, float(line["score"])))
    left, right = (np.array([f[side] for f in found], np.int64) for side in (0, 1))
    return left, right, np.array([f[2] for f in found], np.float32)


def within_score_lines(scores: Sequence[str], data: "WeightedConcat", batches: Sequence[np.ndarray]) -> list[str]:
    """Return a line for each modality in `scores`: how many scored pairs are trained on, and how many are in a batch of the first epoch."""
    lines = []
    for m in scores:
        left, right, _ = scored_rows(data, m)
        batch_of = np.full(len(data), -1, np.int64)
        for number, rows in enumerate(batches):
            batch_of[rows] = number
        together = int(((batch_of[left] == batch_of[right]) & (batch_of[left] >= 0)).sum())
        advice = "" if 2 * together >= len(left) else f"; set data.batches={{groups: {max(1, len(batches[0]) // 2)}, rows: 2}}"
        lines.append(
            f"{len(left):,} scored pairs within {m}: both values of {together:,} are in one batch of the first epoch, beside the pairs "
            f"with a score of 0, which join as negatives{advice}"
        )
    return lines
