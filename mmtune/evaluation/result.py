"""The result of a retrieval evaluation, which converts to JSON, a printed table, a notebook table and a DataFrame."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError

if TYPE_CHECKING:
    import pandas

    from mmtune.evaluation.slices import Slice

SHOWN = 10  # maximum number of slices per direction in a printed table, the worst ones


@dataclass
class Direction:
    """Metrics of one direction, as means over the queries that have a relevant candidate.

    queries, candidates: numbers of items
    skipped: number of queries without a relevant candidate
    tie_rate: share of queries for which a relevant and an irrelevant candidate have the same score, so that ids decide the
        order

    sampled_from: number of query items, if only a sample of them was evaluated
    intervals: {metric: 95% interval of the mean over all queries}, if only a sample was evaluated; None for fewer than two queries

    The following are filled only with per_query=True:
    query_ids: id of each query's item
    query_rows: the row ids of each query's item
    clusters: int64 [queries], cluster numbers (see `clusters.row_clusters`)
    values: {metric: float64 [queries]}
    """

    queries: int
    candidates: int
    metrics: dict[str, float]
    skipped: int = 0
    tie_rate: float = 0.0
    sampled_from: int | None = None
    intervals: dict[str, tuple[float, float] | None] | None = None
    query_ids: list[str] = field(default_factory=list, repr=False)
    query_rows: list[list[str]] = field(default_factory=list, repr=False)
    clusters: np.ndarray | None = field(default=None, repr=False)
    values: dict[str, np.ndarray] | None = field(default=None, repr=False)

    def to_dict(self) -> JsonObject:
        document: JsonObject = {"queries": self.queries, "candidates": self.candidates, "metrics": self.metrics}
        if self.intervals is not None:
            document |= {"sampled_from": self.sampled_from, "intervals": {k: v and list(v) for k, v in self.intervals.items()}}
        return document


@dataclass
class Result:
    """Metrics by direction ("a->b"), for directions in which at least one query has a relevant candidate.

    fingerprint: of the model
    skipped, tie_rate: see `Direction`; given for all directions, even if no query has a relevant candidate
    slices: {direction: {slice: metrics}}, worst slice first
    dims: {dim: result}, for the dimensions that a Matryoshka model was trained for and for its full dimension
    untrained_directions: directions between two modalities that the model was never trained on as a pair
    """

    fingerprint: str
    directions: dict[str, Direction]
    skipped: dict[str, int]
    tie_rate: dict[str, float]
    slices: dict[str, dict[str, "Slice"]] = field(default_factory=dict)
    dims: dict[int, "Result"] = field(default_factory=dict, repr=False)
    untrained_directions: list[str] = field(default_factory=list)

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune eval --json`.

        It has "slices" (worst first) if there are any, and for a Matryoshka model "dims": {dim: {direction: metrics}}.
        """
        document: JsonObject = {
            "fingerprint": self.fingerprint,
            "directions": {name: d.to_dict() for name, d in self.directions.items()},
            "skipped": self.skipped,
            "tie_rate": self.tie_rate,
        }
        if self.slices:
            document["slices"] = {d: {n: s.to_dict() for n, s in by.items()} for d, by in self.slices.items()}
        if self.untrained_directions:
            document["untrained_directions"] = self.untrained_directions
        if self.dims:
            document["dims"] = {str(dim): {n: d.metrics for n, d in r.directions.items()} for dim, r in self.dims.items()}
        return document

    def metric(self, name: str, direction: str | None = None) -> float:
        """Return one metric of one direction, or its mean over the directions between two different modalities.

        If there are only directions within one modality, the mean is over those. Raises RecipeError for an unknown metric or
        direction, and if no query of any direction has a relevant candidate.
        """
        if direction is not None:
            if direction not in self.directions:
                raise RecipeError(
                    f"no direction {direction!r} was evaluated; there are: {', '.join(self.directions) or 'none'}"
                )
            chosen = [self.directions[direction]]
        else:
            across = [d for n, d in self.directions.items() if len(set(n.split("->"))) == 2]
            chosen = across or list(self.directions.values())
        if not chosen:
            raise RecipeError(f"{name}: no query of any direction has a relevant candidate")
        if name not in chosen[0].metrics:
            raise RecipeError(f"no metric {name!r}; there are: {', '.join(chosen[0].metrics)}")
        return float(np.mean([d.metrics[name] for d in chosen]))

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per direction and one per slice ("direction | slice"), with counts, tie rate and all metrics."""
        import pandas

        rows: dict[str, dict[str, float]] = {}
        for name, d in self.directions.items():
            counts = {"queries": d.queries, "candidates": d.candidates, "skipped": d.skipped, "tie_rate": d.tie_rate}
            rows[name] = {**counts, **d.metrics}
            for part, s in self.slices.get(name, {}).items():
                rows[f"{name} | {part}"] = {"queries": s.queries, "candidates": d.candidates, **s.metrics}
        return pandas.DataFrame(list(rows.values()), index=pandas.Index(list(rows), name="direction"))

    def columns(self) -> list[str]:
        """Return the metrics to print: hit at every cut-off, the other metrics at the largest cut-off only."""
        every = list(next(iter(self.directions.values())).metrics) if self.directions else []
        last: dict[str, str] = {}
        for m in every:
            last[m.split("@")[0]] = m
        return [m for m in every if m.startswith("hit@") or last[m.split("@")[0]] == m]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        columns, rows = self.columns(), []
        for name, d in self.directions.items():
            rows.append([name, f"{d.queries:,}", f"{d.candidates:,}", *(f"{d.metrics[c]:.4f}" for c in columns)])
            if d.intervals is not None:
                shown = [d.intervals.get(c) for c in columns]
                bounds = [f"{i[0]:.4f}-{i[1]:.4f}" if i else "" for i in shown]
                rows.append([f"  95% interval (sample of {d.sampled_from:,})", "", "", *bounds])
            parts = list(self.slices.get(name, {}).items())
            for part, s in parts[:SHOWN]:
                rows.append([f"  {part}", f"{s.queries:,}", f"{d.candidates:,}", *(f"{s.metrics[c]:.4f}" for c in columns)])
            if len(parts) > SHOWN:
                rows.append([f"  ({len(parts) - SHOWN} better slices)", *[""] * (len(columns) + 2)])
        return ["direction", "queries", "candidates", *columns], rows

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        notes = [f"{n}: {k:,} queries without a relevant candidate left out" for n, k in self.skipped.items() if k]
        notes += [f"{n}: ties decide in {t:.1%} of the queries" for n, t in self.tie_rate.items() if t > 0.01]
        if self.untrained_directions:
            notes.append(f"{', '.join(self.untrained_directions)}: the model was never trained on this pair of modalities")
        dims = ["", plain_table(*self._dims_table())] if self.dims else []
        return "\n".join([plain_table(*self._table()), *notes, *dims])

    def _dims_table(self) -> tuple[list[str], list[list[str]]]:
        """Return the metrics of every direction at every dimension."""
        columns, rows = self.columns(), []
        for name in self.directions:
            by_dim = {dim: r.directions[name].metrics for dim, r in self.dims.items() if name in r.directions}
            rows += [[name, str(dim), *(f"{m[c]:.4f}" for c in columns)] for dim, m in by_dim.items()]
        return ["direction", "dim", *columns], rows

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        tables = html_table(*self._table(), caption=f"model {self.fingerprint[:12]}")
        return tables + (html_table(*self._dims_table(), caption="by dimensions") if self.dims else "")
