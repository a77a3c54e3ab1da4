"""Compare several seeds of one recipe with a base: is a difference more than the choice of queries and of seeds explains?

Each seed is compared with the base on the same queries. The difference is the mean over the seeds, and two intervals belong to it:
of the queries (the mean of the seeds' intervals, which is at least as wide as that of their mean), and of the seeds (t-interval of
the mean). `interval` takes the wider bound at each end, so that a "pass" needs both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from mmtune.comparison.comparison_result import Comparison
from mmtune.comparison.gate import decide
from mmtune.comparison.paired_difference import PairedDifference, mean_difference
from mmtune.comparison.retention import RETENTION_METRIC
from mmtune.errors import RecipeError
from mmtune.evaluation.result import Direction, Result
from mmtune.evaluation.seed_statistics import SeedRuns, seed_runs

if TYPE_CHECKING:
    from mmtune.comparison.compare_tasks import TaskComparison

M = TypeVar("M")
"""A model, or what names one."""
T = TypeVar("T")


def model_pairs(base: M, candidate: M) -> tuple[list[tuple[M | str, M | str]], SeedRuns | None]:
    """Return the (base, candidate) models to compare, and the runs whose seeds they are; None if neither has several.

    Where both are directories of seeds, the first seed of one is compared with the first of the other, and so on.

    Raises RecipeError if their numbers of seeds differ.
    """
    of_base, of_candidate = seed_runs(base), seed_runs(candidate)
    if of_base is None and of_candidate is None:
        return [(base, candidate)], None
    left: list[M | str] = [*of_base.artifacts] if of_base else [base]
    right: list[M | str] = [*of_candidate.artifacts] if of_candidate else [candidate]
    if of_base and of_candidate and len(left) != len(right):
        raise RecipeError(
            f"{base} has {len(left)} seeds and {candidate} {len(right)}: seeds are compared in pairs; train as many of both, or name "
            "one model of the base"
        )
    count = max(len(left), len(right))
    left, right = (side if len(side) == count else side * count for side in (left, right))
    return list(zip(left, right, strict=True)), of_candidate or of_base


def made_once(pairs: Sequence[tuple[M, M]], make: Callable[[M, int], T]) -> Iterator[tuple[T, T]]:
    """Make both sides of every pair of models; the one model that all seeds are compared with is made once.

    make: function (model, or what names one; 0 for the base, 1 for the candidate)
    """
    made: dict[int, tuple[M, T]] = {}
    for pair in pairs:
        for side, model in enumerate(pair):
            if side not in made or made[side][0] is not model:
                made.pop(side, None)  # before the next one is made, so that no more than two models are in memory
                made[side] = (model, make(model, side))
        yield made[0][1], made[1][1]


def combine_comparisons(comparisons: Sequence[Comparison], seeds: Sequence[int]) -> Comparison:
    """Combine the comparisons of several seeds, which have the same gate and data, and let the gate decide on the whole."""
    first = comparisons[0]

    def combined(of: Callable[[Comparison], Mapping[str, PairedDifference]]) -> dict[str, PairedDifference]:
        tables = [of(c) for c in comparisons]
        return {n: mean_difference([t[n] for t in tables]) for n in tables[0] if all(n in t for t in tables)}

    directions, slices = combined(lambda c: c.directions), combined(lambda c: c.slices)
    metrics = {d: combined(lambda c, d=d: c.metrics[d]) for d in first.metrics}  # type: ignore[misc]
    known = {**directions, **slices}
    verdict, reason = decide(first.gate, directions[first.gate.direction], {g: known[g] for g in first.gate.guards or {}})
    worst_first = dict(sorted(slices.items(), key=lambda x: (x[1].difference, x[0])))
    base, candidate = mean_result([c.base for c in comparisons]), mean_result([c.candidate for c in comparisons])
    return Comparison(verdict, reason, first.gate, directions, worst_first, metrics, base, candidate, list(seeds))


def combine_task_comparisons(comparisons: "Sequence[TaskComparison]", seeds: Sequence[int]) -> "TaskComparison":
    """The same for comparisons by a task."""
    first = comparisons[0]
    table: dict[str, dict[str, PairedDifference]] = {
        m: {n: mean_difference([c.differences[m][n] for c in comparisons]) for n in of} for m, of in first.differences.items()
    }
    guards: dict[str, PairedDifference] = {g: mean_difference([c.guards[g] for c in comparisons]) for g in first.guards}
    verdict = decide(first.gate, table[first.gate.direction][first.gate.metric], guards, RETENTION_METRIC)
    return replace(first, verdict=verdict.verdict, reason=verdict.reason, differences=table, guards=guards, seeds=list(seeds))


def mean_result(results: Sequence[Result]) -> Result:
    """The mean of the metrics of several results on the same data, without values of single queries."""
    first = results[0]
    fingerprints = list(dict.fromkeys(r.fingerprint for r in results))
    directions = {
        name: Direction(
            queries=d.queries,
            candidates=d.candidates,
            metrics={m: sum(r.directions[name].metrics[m] for r in results) / len(results) for m in d.metrics},
            skipped=d.skipped,
            tie_rate=max(r.directions[name].tie_rate for r in results),
        )
        for name, d in first.directions.items()
        if all(name in r.directions for r in results)
    }
    return Result(", ".join(fingerprints), directions, first.skipped, first.tie_rate)
