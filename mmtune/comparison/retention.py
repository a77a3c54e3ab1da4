"""Retention: check that a tuned model has not become worse on other data.

The retention data are not those that the model is tuned on, e.g. general image-caption pairs. A comparison evaluates both
models on them as the slice "retention", which the gate guards.
"""

from collections.abc import Iterable, Mapping, Sequence

from mmtune.comparison.gate import MEAN, RETENTION
from mmtune.comparison.paired_difference import Bootstrap, DirectionPair, PairedDifference, paired_differences
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.clusters import clusters_by_value
from mmtune.evaluation.directions import evaluate_vectors

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


def across_modalities(directions: Iterable[str]) -> list[str]:
    """Return those `directions` ("a->b") whose query and candidate modalities differ."""
    return [n for n in directions if len(set(n.split("->"))) == 2]
