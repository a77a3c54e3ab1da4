"""Retention: check that a tuned model has not become worse on other data.

The retention data are not those that the model is tuned on, e.g. general image-caption pairs. A comparison evaluates both
models on them as the slice "retention", which the gate guards. A training run refuses to train on retention rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune.comparison.gate import MEAN, RETENTION
from mmtune.comparison.paired_difference import Bootstrap, DirectionPair, PairedDifference, paired_differences
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.leakage import trained_rows

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

Vectors = Mapping[str, Embeddings]


def retention_difference(
    base: Vectors,
    candidate: Vectors,
    metric: str,
    direction: str = MEAN,
    *,
    ks: Sequence[int] = (1, 5, 10),
    within: bool = False,
    bootstrap: Bootstrap | None = None,
) -> PairedDifference:
    """Compute the paired difference of `metric` between two models' vectors of the retention data.

    It is computed in `direction` if the data have this direction, otherwise as the mean over the directions between two
    modalities. Raises DataError if no query in these directions has a relevant candidate.
    """
    before, after = (evaluate_vectors(v, ks=ks, metrics=[metric], within=within, per_query=True) for v in (base, candidate))
    names = [direction] if direction in before.directions else across_modalities(before.directions)
    if not names:
        raise DataError(f"slice {RETENTION!r}: no query of the retention data has a relevant candidate")
    pairs = [DirectionPair(before.directions[n], after.directions[n]) for n in names]
    return paired_differences(pairs, [metric], bootstrap)[metric]


def across_modalities(directions: Iterable[str]) -> list[str]:
    """Return those `directions` ("a->b") whose query and candidate modalities differ."""
    return [n for n in directions if len(set(n.split("->"))) == 2]


def refuse_trained_retention(
    retention: "Data", trained: "Data | WeightedConcat", usable: np.ndarray, modalities: Sequence[str]
) -> None:
    """Raise RecipeError if retention rows are among the training rows `usable` (bool [N]) of `trained`.

    Rows are compared by content only, because ids such as "1" may occur in unrelated datasets.
    """
    present = {m: np.flatnonzero(retention.present[m]) for m in modalities if m in retention.modalities}
    rows = {
        m: Embeddings(
            [retention.ids[i] for i in at], [None] * len(at), {m: retention.labels[m][at]}, np.empty((len(at), 0), np.float32)
        )
        for m, at in present.items()
    }
    reasons = trained_rows(rows, {m: np.unique(trained.labels[m][usable]) for m in present})
    if reasons:
        row = min(reasons)
        raise RecipeError(
            f"data.retention: {len(reasons)} of the rows of {retention.spec} are trained on (row {row!r}: {reasons[row]}); "
            "remove them from data.retention or from the training data"
        )
