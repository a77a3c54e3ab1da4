"""What an objective demands of the data, looked at before the first step: a mistake costs seconds, not an epoch of nothing."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune.contracts import Pair
from mmtune.errors import RecipeError
from mmtune.losses.graded import SCORE_RANGES
from mmtune.training.objective import Objective, default_positives
from mmtune.training.objective_spec import AUTO, LossTerm
from mmtune.training.score_columns import check_values
from mmtune.training.teacher_outputs import TeacherScores

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat

    pass

LISTS = ("kl", "margin_mse")
"""Losses that compare the scores of one query's candidates with each other."""


def check_demands(
    objective: Objective, data: "WeightedConcat", columns: Mapping[str, np.ndarray], batches: Sequence[np.ndarray]
) -> None:
    """columns: numeric metadata by name [N]; batches: an epoch's, of row numbers.

    Raises DataError for a value that is missing, NaN or out of range in a row that a term looks at, and RecipeError for a term
    that no batch gives anything to learn from; each names the recipe's key.
    """
    for term in objective.terms:
        pairs: list[Pair] = [(a, b) for a, b in term.pairs] if term.pairs else objective.pairs
        rows = np.flatnonzero(np.any([data.present[a] & data.present[b] for a, b in pairs], axis=0))
        _values(term, data, columns, rows)
        if isinstance(teacher := objective.teachers.get(term.teacher or ""), TeacherScores) and term.loss in LISTS:
            if teacher.most() < 2:
                name = teacher.name
                raise RecipeError(
                    f"{term.key}: {term.loss} compares a query's candidates, and teacher {name!r} scored one for each: name "
                    f"more of them (teachers.{name}.candidates: all, or a negatives table)"
                )
        for a in {a for a, b in pairs if a == b}:
            _meet(term, a, data, batches)


def _values(term: LossTerm, data: "WeightedConcat", columns: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
    asked: list[tuple[str, str, float | None, float | None]] = []
    if term.family == "scored_pairs":
        low, high = SCORE_RANGES.get(term.loss, (None, None))
        asked.append((str(term.options.get("column", "score")), f"{term.key}.column", low, high))
    if term.weights:
        asked.append((term.weights, f"{term.key}.weights", 0.0, None))
    for name, key, low, high in asked:
        values = columns[name][rows]
        check_values(torch.from_numpy(values), lambda at: data.ids[rows[at]], name, key, low, high)
        if name == term.weights and not values.any():
            raise RecipeError(f"{key}: column {name!r} of {data.spec} is 0 in every row: nothing to learn from")


def _meet(term: LossTerm, a: str, data: "WeightedConcat", batches: Sequence[np.ndarray]) -> None:
    """Within one modality another value of the same group is the positive: some batch must hold two."""
    if term.family != "contrastive":
        return
    positives = term.options.get("positives", default_positives() if term.loss in (AUTO, "info_nce") else None)
    if positives == "mask" or term.weights:
        what = "weights" if term.weights else "positives"
        raise RecipeError(
            f"{term.key}.{what}: takes a row's own pair alone, which within one modality ([{a}, {a}]) is the value and itself; "
            "use positives: mean or sum"
        )
    for rows in batches:
        here = rows[data.present[a][rows] & (data.labels["group"][rows] != 0)]
        group, content = data.labels["group"][here], data.labels[a][here]
        if len(np.unique(np.stack([group, content]), axis=1).T) > len(np.unique(group)):
            return
    raise RecipeError(
        f"{term.key}: no batch has a positive for [{a}, {a}]: two different values of one group never meet in one "
        "(no groups? data.batches: spread? a train.batch_size too small?)"
    )
