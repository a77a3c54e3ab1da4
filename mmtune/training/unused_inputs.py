"""Messages about negatives and scores that the data have and that no loss of the objective uses. Printed before the first step."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import direction
from mmtune.data.shards.locate import JUDGMENTS
from mmtune.runtime.files import read_json
from mmtune.training.objective import Objective
from mmtune.training.objective_spec import LossTerm

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat

ENOUGH_POSITIVES = 0.5
"""Fraction of rows with a positive in their batch below which a line says so, for pairs of a modality with itself."""


def unused_negatives(objective: Objective, directions: Iterable[str]) -> list[str]:
    """Return a line for every direction whose negatives no loss uses, and for losses beside others that use none.

    directions: the directions "a->b" in which negatives are given
    """
    if not objective.terms:  # a cross-encoder uses the negatives of all directions
        return []
    lines = []
    for name in directions:
        idle = [f"{term.key} ({term.loss})" for term in objective.terms if not _uses(term, name, objective)]
        if len(idle) == len(objective.terms):
            lines.append(f"no loss uses the negatives in {name}: {', '.join(idle)} cannot; add e.g. {{loss: info_nce}}")
        elif idle:
            lines.append(f"{', '.join(idle)} does not use the negatives in {name}, the other losses do")
    return lines


def few_positives(objective: Objective, data: "WeightedConcat", batches: Sequence[np.ndarray]) -> list[str]:
    """Return a line if all pairs are of a modality with itself and most rows have no positive in their batch."""
    if any(a != b for a, b in objective.pairs):
        return []
    found = total = 0
    for rows in batches:
        group = data.labels["group"][rows]
        _, inverse, count = np.unique(group, return_inverse=True, return_counts=True)
        found += int(((count[inverse] > 1) & (group != 0)).sum())
        total += len(rows)
    if found >= ENOUGH_POSITIVES * total:
        return []
    return [
        f"only {found / total:.0%} of the rows have a positive (a row of their group) in their batch; set "
        f"data.batches={{groups: {max(1, len(batches[0]) // 2)}, rows: 2}}"
    ]


def _uses(term: LossTerm, name: str, objective: Objective) -> bool:
    """Whether a term compares the queries of a direction with additional candidates."""
    if term.family not in ("contrastive", "distillation") or term.loss == "feature":
        return False
    for a, b in [tuple(p) for p in term.pairs] if term.pairs else objective.pairs:
        forward, backward = direction(a, b), direction(b, a)
        trained = {"forward": (forward,), "backward": (backward,), "both": (forward, backward)}[
            "forward" if a == b else term.directions
        ]
        if name in trained:
            return True
    return False


def unused_scores(objective: Objective, data: "WeightedConcat") -> list[str]:
    """Return a line for every training set that was packed with scores (`--score`) which no loss uses."""
    lines = []
    for of_set in data.sets:
        for folder in dict.fromkeys(Path(s.path).parent for s in of_set.shards):
            if not (folder / JUDGMENTS).exists() or not (folder / "index.json").exists():
                continue
            column = read_json(folder / "index.json")["columns"].get("score")
            if column and column not in objective.columns and not objective.within_scores:
                lines.append(
                    f"{folder}: no loss uses the scores in the column {column!r}, so every row counts as a full positive; set "
                    f"objective[0].weights={column}, or use a loss on scores, e.g. {{loss: cosent, column: {column}}}"
                )
    return lines
