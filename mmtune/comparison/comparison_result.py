"""The result of a comparison: the gate's verdict and all differences behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.comparison.gate import Gate
from mmtune.comparison.paired_difference import PairedDifference, SeedsDifference
from mmtune.contracts import JsonObject
from mmtune.evaluation.result import Result
from mmtune.evaluation.seed_statistics import spread_cells
from mmtune.recipe.gate_block import MEAN

if TYPE_CHECKING:
    import pandas


@dataclass
class GatedComparison:
    """What every comparison that a gate decided has.

    verdict: "pass", "fail" or "inconclusive"
    reason: the reason for the verdict, in one sentence
    """

    verdict: str
    reason: str
    gate: Gate

    @property
    def status(self) -> int:
        """Exit status of the command: 0 if the verdict is "pass", else 1."""
        return 0 if self.verdict == "pass" else 1

    @property
    def headline(self) -> str:
        """The verdict and its reason, in one line."""
        return f"{self.verdict.upper()}: {self.reason}"

    def to_dict(self) -> JsonObject:
        """Return the verdict, its reason and the gate as a JSON document."""
        return {"verdict": self.verdict, "reason": self.reason, "gate": self.gate.to_dict()}


@dataclass
class Comparison(GatedComparison):
    """The result of comparing a candidate model with a base model by retrieval.

    directions: difference of the gate's metric by direction, and of the "mean" if there are several directions
    slices: difference of the gate's metric in the gate's direction, by slice
    metrics: {direction: {metric: difference}}, for all metrics
    base, candidate: the evaluations of the two models
    seeds: the seeds, if several seeds of a recipe were compared (see `mmtune.comparison.compare_seeds`)
    """

    directions: dict[str, PairedDifference]
    slices: dict[str, PairedDifference]
    metrics: dict[str, dict[str, PairedDifference]] = field(repr=False)
    base: Result = field(repr=False)
    candidate: Result = field(repr=False)
    seeds: list[int] = field(default_factory=list)

    @property
    def changes(self) -> tuple[Mapping[str, PairedDifference], Mapping[str, PairedDifference]]:
        """The changes of the gate's metric by direction, and by slice."""
        return self.directions, self.slices

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune compare --json`."""
        return {
            **super().to_dict(),
            "directions": {n: c.to_dict() for n, c in self.directions.items()},
            "slices": {n: c.to_dict() for n, c in self.slices.items()},
            "metrics": {d: {m: c.to_dict() for m, c in by.items()} for d, by in self.metrics.items()},
            "fingerprints": {"base": self.base.fingerprint, "candidate": self.candidate.fingerprint},
            **({"seeds": self.seeds} if self.seeds else {}),
        }

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per direction and metric, and one per slice with the gate's metric."""
        import pandas

        rows = [{"where": d, "metric": m, **c.to_dict()} for d, by in self.metrics.items() for m, c in by.items()]
        rows += [{"where": s, "metric": self.gate.metric, **c.to_dict()} for s, c in self.slices.items()]
        frame = pandas.DataFrame(rows)
        return frame.assign(low=[r["interval"][0] for r in rows], high=[r["interval"][1] for r in rows]).drop(
            columns="interval"
        )

    def _candidates(self, where: str) -> str:
        """Return how many candidates the queries of a direction or slice were ranked against; "" for another kind of figure.

        Slices are of the gate's direction. The mean over directions has the candidates of each direction.
        """
        directions = self.base.directions
        name = where if where in directions else self.gate.direction if where in self.slices else ""
        found = [directions[name]] if name in directions else list(directions.values()) if where == MEAN else []
        counts = sorted({d.candidates for d in found})
        return "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [
                n,
                f"{c.queries:,}",
                self._candidates(n),
                f"{c.base:.4f}",
                f"{c.candidate:.4f}",
                str(c),
                f"{c.wins:,}",
                f"{c.losses:,}",
            ]
            for n, c in [*self.directions.items(), *self.slices.items()]
        ]
        return [
            "where",
            "queries",
            "candidates",
            "base",
            "candidate",
            f"difference of {self.gate.metric}",
            "wins",
            "losses",
        ], rows

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        text = f"{self.headline}\n\n{plain_table(*self._table())}"
        return f"{text}\n\n{seeds_text(self.seeds, self.directions, self.gate.metric)}" if self.seeds else text

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        return html_table(*self._table(), caption=self.headline)


def seeds_text(seeds: Sequence[int], differences: Mapping[str, PairedDifference], metric: str) -> str:
    """A table of the differences over the seeds, for a comparison of several seeds."""
    from mmtune.evaluation.result_tables import plain_table

    rows = [
        [n, *spread_cells(d.seeds, sign=True), "[{:+.4f}, {:+.4f}]".format(*d.queries_interval)]
        for n, d in differences.items()
        if isinstance(d, SeedsDifference) and d.seeds is not None
    ]
    named = f"difference of {metric}" if metric else "difference"
    columns = [f"{len(seeds)} seeds ({', '.join(map(str, seeds))})", named, "sd", "95%: seeds", "each seed", "95%: queries"]
    return plain_table(columns, rows)
