"""Checks of the objective against the training data before the first step, so that mistakes are found within seconds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune.contracts import Batch, Pair
from mmtune.errors import RecipeError
from mmtune.losses.graded import SCORE_RANGES
from mmtune.training.objective import Objective
from mmtune.training.objective_spec import AUTO, LossTerm
from mmtune.training.score_columns import check_values
from mmtune.training.teacher_outputs import TeacherScores
from mmtune.training.tiled_both_directions import default_positives
from mmtune.training.unique_items import pair_items

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat

LISTWISE = ("kl", "margin_mse")
"""Losses that compare the teacher's scores of several candidates of the same query."""


def check_objective_data(
    objective: Objective,
    data: "WeightedConcat",
    columns: Mapping[str, np.ndarray],
    batches: Sequence[np.ndarray],
    mined: bool = False,
) -> None:
    """Check every term of the objective against the data.

    Raises DataError for a value that is missing, NaN or out of range in a row that a term uses. Raises RecipeError for a term
    that has no positive, or no negative, in any batch. Each message names the recipe key.

    columns: {name: numeric metadata column [N]}
    batches: the batches of one epoch, each as row numbers
    mined: whether mined hard negatives will join the batches
    """
    for term in objective.terms:
        pairs: list[Pair] = [(a, b) for a, b in term.pairs] if term.pairs else objective.pairs
        rows = np.flatnonzero(np.any([data.present[a] & data.present[b] for a, b in pairs], axis=0))
        _check_columns(term, pairs, data, columns, rows)
        teacher = objective.teachers.get(term.teacher or "")
        if isinstance(teacher, TeacherScores) and term.loss in LISTWISE and teacher.max_candidates() < 2:
            raise RecipeError(
                f"{term.key}: {term.loss} compares a query's candidates, but teacher {teacher.name!r} scored only one for each "
                f"query; score more (teachers.{teacher.name}.candidates: all, or a negatives table)"
            )
        if term.family == "class_label":
            objective.class_losses.check_batches(objective.terms.index(term), pairs, data, batches)
        if term.family != "contrastive" or term.views:
            continue
        for a in {a for a, b in pairs if a == b}:
            _check_positives_within(term, a, data, batches)
        if objective.memory is None and not mined:
            _check_negatives(term, pairs, data, batches)


def check_rerank_batches(
    pairs: Sequence[Pair], data: "WeightedConcat", batches: Sequence[np.ndarray], mined: bool = False
) -> None:
    """Raise RecipeError unless some batch has a positive and a negative for a cross-encoder. Parameters: as above."""
    term = LossTerm("cross_encoder", key="cross_encoder")
    for a in {a for a, b in pairs if a == b}:
        _check_positives_within(term, a, data, batches)
    if not mined:
        _check_negatives(term, pairs, data, batches)


def _check_columns(
    term: LossTerm, pairs: Sequence[Pair], data: "WeightedConcat", columns: Mapping[str, np.ndarray], rows: np.ndarray
) -> None:
    """Check the values of the term's score and weight columns in the rows that it uses."""
    used: list[tuple[str, str, float | None, float | None]] = []  # (column, recipe key, lowest value, highest value)
    if term.family == "scored_pairs" and any(a != b for a, b in term.pairs or pairs):
        low, high = SCORE_RANGES.get(term.loss, (None, None))
        used.append((str(term.options.get("column", "score")), f"{term.key}.column", low, high))
    if term.weights:
        used.append((term.weights, f"{term.key}.weights", 0.0, None))
    for name, key, low, high in used:
        values = columns[name][rows]
        check_values(torch.from_numpy(values), lambda at: data.ids[rows[at]], name, key, low, high)
        if name == term.weights and not values.any():
            raise RecipeError(f"{key}: column {name!r} of {data.spec} is 0 in every row that is used; nothing to learn")


def _check_positives_within(term: LossTerm, a: str, data: "WeightedConcat", batches: Sequence[np.ndarray]) -> None:
    """Check that, for a pair of one modality with itself, some batch contains two different values of the same group.

    Within one modality, the positives of a value are the other values of its group.
    """
    positives = term.options.get("positives", default_positives() if term.loss in (AUTO, "info_nce") else None)
    if positives == "mask" or term.weights:
        what = "weights" if term.weights else "positives"
        raise RecipeError(
            f"{term.key}.{what}: only a row's own pair would be positive, but within one modality ([{a}, {a}]) this is a value "
            "and itself; use positives: mean or sum"
        )
    for rows in batches:
        grouped = rows[data.present[a][rows] & (data.labels["group"][rows] != 0)]
        group, content = data.labels["group"][grouped], data.labels[a][grouped]
        if len(np.unique(np.stack([group, content]), axis=1).T) > len(np.unique(group)):
            return
    raise RecipeError(
        f"{term.key}: no batch has a positive pair for [{a}, {a}], because two different values of one group are never in the "
        "same batch (no groups? data.batches: spread? train.batch_size too small?)"
    )


def _check_negatives(term: LossTerm, pairs: Sequence[Pair], data: "WeightedConcat", batches: Sequence[np.ndarray]) -> None:
    """Check that some batch has a query with a negative. Otherwise a contrastive loss is always 0 and nothing is learned."""
    for rows in batches:
        batch = _labels_only(data, rows, {m for pair in pairs for m in pair})
        for pair in pairs:
            items = pair_items(batch, pair)
            if items is not None and not bool(items.positives.block(0, items.a.n_queries).all()):
                return
    names = ", ".join(f"[{a}, {b}]" for a, b in pairs)
    raise RecipeError(
        f"{term.key}: no batch has a negative for {names}: all values of a batch share a group, an id or their content "
        "(one group for all rows? the same caption everywhere? train.batch_size too small?)"
    )


def _labels_only(data: "WeightedConcat", rows: np.ndarray, modalities: set[str]) -> Batch:
    """Return a batch of these rows with labels but without encoder inputs."""
    items = {m: torch.from_numpy(np.where(data.present[m][rows], np.arange(len(rows)), -1)) for m in modalities}
    return Batch(
        ids=data.ids.take(rows),
        index=torch.from_numpy(rows.astype(np.int64)),
        is_query=torch.ones(len(rows), dtype=torch.bool),
        inputs={},
        item_of_row=items,
        labels={k: torch.from_numpy(v[rows]) for k, v in data.labels.items()},
    )
