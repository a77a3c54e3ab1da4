"""Retention: check that a tuned model has not become worse on other data.

The retention data are not those that the model is tuned on, e.g. general image-caption pairs. A comparison evaluates both
models on them as the slice "retention", which the gate guards.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mmtune.comparison.gate import MEAN, RETENTION, Gate
from mmtune.comparison.paired_difference import Bootstrap, DirectionPair, PairedDifference, paired_differences
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.clusters import clusters_by_value
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.leakage import contents_only, refuse_trained_rows, row_identity

if TYPE_CHECKING:
    import numpy as np

    from mmtune.data.shards.dataset import Data

Vectors = Mapping[str, Embeddings]
RETENTION_METRIC = str(Gate.model_fields["metric"].default)
"""Metric of the retention slice where the gate's metric is one of a task."""


def retention_difference(
    base: Vectors,
    candidate: Vectors,
    metric: str,
    direction: str = MEAN,
    *,
    ks: Sequence[int] = (1, 5, 10),
    within: bool = False,
    bootstrap: Bootstrap | None = None,
    source: Mapping[str, str | None] | None = None,
) -> PairedDifference:
    """Compute the paired difference of `metric` between two models' vectors of the retention data.

    It is computed in `direction` if the data have this direction, otherwise as the mean over the directions between two
    modalities.

    source: {row id of the retention data: e.g. its recording}; the interval resamples these instead of groups

    Raises DataError if no query in these directions has a relevant candidate.
    """
    before, after = (evaluate_vectors(v, ks=ks, metrics=[metric], within=within, per_query=True) for v in (base, candidate))
    names = [direction] if direction in before.directions else across_modalities(before.directions)
    if not names:
        raise DataError(f"slice {RETENTION!r}: no query of the retention data has a relevant candidate")
    if source is not None:
        for d in [*before.directions.values(), *after.directions.values()]:
            d.clusters = clusters_by_value(d.query_rows, source)
    pairs = [DirectionPair(before.directions[n], after.directions[n]) for n in names]
    return paired_differences(pairs, [metric], bootstrap)[metric]


def refuse_trained_retention(
    retention: "Data", modalities: Sequence[str], trained: "Mapping[str, np.ndarray] | None", name: str, allow_trained: bool
) -> None:
    """Raise DataError if a model was trained on contents of the retention data, or warn with `allow_trained`.

    trained: labels of the rows that the model was trained on, by kind; None if not known
    name: the model's name in messages, e.g. "the base"
    """
    identities = {m: row_identity(retention, m) for m in modalities}
    refuse_trained_rows(identities, contents_only(trained), name, allow_trained, "the retention data's")


def across_modalities(directions: Iterable[str]) -> list[str]:
    """Return those `directions` ("a->b") whose query and candidate modalities differ."""
    return [n for n in directions if len(set(n.split("->"))) == 2]
