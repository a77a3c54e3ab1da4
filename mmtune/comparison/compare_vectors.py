"""Compare two models' vectors of the same rows: paired differences by direction and slice, and the gate's verdict."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS
from mmtune.comparison.comparison_result import Comparison
from mmtune.comparison.confusable import CONFUSABLE, CONFUSABLE_PAIRS, Confusable, confusable_difference
from mmtune.comparison.gate import MEAN, RETENTION, Gate, complete_gate, decide
from mmtune.comparison.paired_difference import Bootstrap, DirectionPair, PairedDifference, paired_differences
from mmtune.comparison.retention import across_modalities, retention_difference
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.clusters import clusters_by_value
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.leakage import refuse_trained_rows
from mmtune.evaluation.metrics import metric_columns, with_cutoffs
from mmtune.evaluation.result import Result
from mmtune.evaluation.slices import Slices, in_slice
from mmtune.relevance.judgments import Qrels

Vectors = Mapping[str, Embeddings]
Differences = dict[str, PairedDifference]


def compare_vectors(
    base: Vectors,
    candidate: Vectors,
    *,
    gate: "Gate | Mapping[str, object] | None" = None,
    ks: Sequence[int] = (1, 5, 10),
    pairs: Sequence[tuple[str, str]] | None = None,
    within: bool = False,
    qrels: Qrels | None = None,
    exclude_same: Mapping[str, str | None] | None = None,
    slices: Slices | None = None,
    retention: tuple[Vectors, Vectors] | None = None,
    retention_source: Mapping[str, str | None] | None = None,
    confusable: Confusable | None = None,
    trained: "Mapping[str, np.ndarray | set[int]] | None" = None,
    source: Mapping[str, str | None] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two models' vectors of the same rows, query by query.

    gate: what the candidate has to gain and to keep; default: `complete_gate`
    ks, pairs, within, qrels, exclude_same: as for `evaluate_vectors`
    slices: {slice name: row ids}
    retention: (base's vectors, candidate's vectors) of the retention data, for the slice "retention"
    retention_source: as `source`, for the rows of the retention data
    confusable: a frozen slice, which adds the slices "confusable" and "confusable pairs"
    trained: labels of the candidate's training rows; DataError if they are among the compared rows
    source: {row id: e.g. its recording}; intervals resample these instead of groups (see `clusters_by_value`)
    level, resamples, seed: confidence level, number of resamples and random seed of the bootstrap intervals

    Raises DataError if only one model has vectors of some row, and RecipeError if the gate names an unknown metric, direction
    or slice.
    """
    _check_same_rows(base, candidate, "the data")
    refuse_trained_rows(candidate, trained, "the candidate")
    chosen, bootstrap = Gate.read(gate), Bootstrap(level, resamples, seed)
    wanted = [chosen.metric] if chosen else []
    metric_columns(ks, wanted, "gate.metric")  # only to raise RecipeError for an unknown metric
    ks = with_cutoffs(ks, wanted)
    before, after = (
        evaluate_vectors(
            v, ks=ks, metrics=wanted, pairs=pairs, within=within, qrels=qrels, exclude_same=exclude_same, per_query=True
        )
        for v in (base, candidate)
    )
    if source is not None:
        for d in [*before.directions.values(), *after.directions.values()]:
            d.clusters = clusters_by_value(d.query_rows, source)
    if not before.directions:
        raise DataError("no query of any direction has a relevant candidate; are ids or groups missing?")
    across = across_modalities(before.directions) or list(before.directions)
    sets: dict[str, frozenset[str] | set[str]] = {**(slices or {}), **({CONFUSABLE: confusable.rows} if confusable else {})}
    own_guards = chosen is not None and chosen.guards is not None
    chosen = complete_gate(chosen, across, [*sets, *([RETENTION] if retention else [])])
    table = _all_differences(before, after, across, chosen, bootstrap)
    differences = _slice_differences(
        before, after, sets, across if chosen.direction == MEAN else [chosen.direction], chosen, bootstrap
    )
    if retention:
        _check_same_rows(*retention, f"slice {RETENTION!r}")
        differences[RETENTION] = retention_difference(
            *retention,
            chosen.metric,
            chosen.direction,
            ks=ks,
            within=within,
            bootstrap=bootstrap,
            source=retention_source,
        )
    if confusable:
        differences[CONFUSABLE_PAIRS] = confusable_difference(confusable, base, candidate, bootstrap, source)
    note = ""
    if not own_guards:
        chosen, note = _without_small_guard(chosen, differences.get(CONFUSABLE))
    return _with_verdict(chosen, note, table, differences, before, after)


def _without_small_guard(gate: Gate, confusable: PairedDifference | None) -> tuple[Gate, str]:
    """Leave out the default guard of the confusable slice if the slice is too small for an interval: it would decide nothing.

    Returns the gate, and the sentence that says so.
    """
    if CONFUSABLE not in (gate.guards or {}) or confusable is not None and confusable.has_interval:
        return gate, ""
    kept = gate.model_copy(update={"guards": {g: b for g, b in (gate.guards or {}).items() if g != CONFUSABLE}})
    found = "no query" if confusable is None else f"{confusable.clusters} clusters"
    return kept, f" The guard {CONFUSABLE!r} was left out: {found}, and an interval needs at least {MIN_CLUSTERS} clusters."


def _all_differences(
    before: Result, after: Result, across: Sequence[str], gate: Gate, bootstrap: Bootstrap
) -> dict[str, Differences]:
    """Compute the differences of every metric by direction, and of the mean over directions.

    Raises RecipeError if the gate names a metric or direction that was not evaluated.
    """
    metrics = list(next(iter(before.directions.values())).metrics)
    if gate.metric not in metrics:  # happens if the cut-offs `ks` leave out the default gate's metric
        raise RecipeError(f"gate.metric: no metric {gate.metric!r}; there are: {', '.join(metrics)}")
    pairs = {n: DirectionPair(before.directions[n], after.directions[n]) for n in before.directions}
    table = {n: paired_differences([pair], metrics, bootstrap) for n, pair in pairs.items()}
    if len(across) > 1:
        table[MEAN] = paired_differences([pairs[n] for n in across], metrics, bootstrap)
    if gate.direction not in table:
        raise RecipeError(f"gate.direction: no direction {gate.direction!r}; there are: {', '.join(table)}")
    return table


def _slice_differences(
    before: Result, after: Result, slices: Slices, directions: Sequence[str], gate: Gate, bootstrap: Bootstrap
) -> Differences:
    """Compute the difference of the gate's metric over the queries of each slice; slices without a query are left out."""
    out = {}
    for name, rows in slices.items():
        pairs = [
            DirectionPair(before.directions[n], after.directions[n], in_slice(before.directions[n], rows)) for n in directions
        ]
        pairs = [p for p in pairs if p.mask is not None and p.mask.any()]
        if pairs:
            out[name] = paired_differences(pairs, [gate.metric], bootstrap)[gate.metric]
    return out


def _with_verdict(
    gate: Gate, note: str, table: dict[str, Differences], slices: Differences, before: Result, after: Result
) -> Comparison:
    """note: a sentence to append to the reason."""
    directions = {n: by_metric[gate.metric] for n, by_metric in table.items()}
    known = {**directions, **slices}
    guards = gate.guards or {}
    for guard in guards:
        if guard not in known:
            raise RecipeError(f"gate.guards.{guard}: no such slice or direction; there are: {', '.join(known)}")
    verdict, reason = decide(gate, directions[gate.direction], {g: known[g] for g in guards})
    worst_first = dict(sorted(slices.items(), key=lambda x: (x[1].difference, x[0])))
    return Comparison(verdict, reason + note, gate, directions, worst_first, table, before, after)


def _check_same_rows(base: Vectors, candidate: Vectors, what: str) -> None:
    """Raise DataError unless both models have vectors of the same modalities and rows."""
    if set(base) != set(candidate):
        raise DataError(
            f"{what}: the base has vectors of {', '.join(base)}, the candidate of {', '.join(candidate)}; both need the same"
        )
    for name in base:
        if set(base[name].ids) != set(candidate[name].ids):
            only = min(set(base[name].ids) ^ set(candidate[name].ids))
            raise DataError(f"{what}: {name}: only one model has a vector of row {only!r}; embed the same data with both")
