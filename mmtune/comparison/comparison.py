"""Base against candidate on the same queries: paired differences, intervals by cluster, slices, and the gate's verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.comparison.bootstrap_intervals import intervals
from mmtune.comparison.confusable import Confusable, accuracy
from mmtune.comparison.gate import MEAN, Change, Gate, decide, default_gate
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.leakage import refuse_trained
from mmtune.evaluation.result import Direction, Result
from mmtune.evaluation.slices import Slices, member
from mmtune.relevance.relevant import Qrels

if TYPE_CHECKING:
    import pandas

Vectors = Mapping[str, Embeddings]
TWINS = "confusable pairs"


@dataclass
class Comparison:
    """Verdict first. `directions` and `slices` hold the gate's metric; `metrics` every metric of every direction.

    A slice's numbers are of the gate's direction, or of the mean over directions.
    """

    verdict: str
    reason: str
    gate: Gate
    directions: dict[str, Change]
    slices: dict[str, Change]
    metrics: dict[str, dict[str, Change]] = field(repr=False)
    base: Result = field(repr=False)
    candidate: Result = field(repr=False)

    @property
    def status(self) -> int:
        """Exit status: 0 when the gate lets the candidate pass, else 1."""
        return 0 if self.verdict == "pass" else 1

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `mmtune compare --json`."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "gate": self.gate.to_dict(),
            "directions": {n: c.to_dict() for n, c in self.directions.items()},
            "slices": {n: c.to_dict() for n, c in self.slices.items()},
            "metrics": {d: {m: c.to_dict() for m, c in by.items()} for d, by in self.metrics.items()},
            "fingerprints": {"base": self.base.fingerprint, "candidate": self.candidate.fingerprint},
        }

    def to_pandas(self) -> "pandas.DataFrame":
        """One line a direction and metric, and one a slice with the gate's metric."""
        import pandas

        rows = [{"where": d, "metric": m, **c.to_dict()} for d, by in self.metrics.items() for m, c in by.items()]
        rows += [{"where": s, "metric": self.gate.metric, **c.to_dict()} for s, c in self.slices.items()]
        frame = pandas.DataFrame(rows)
        return frame.assign(low=[r["interval"][0] for r in rows], high=[r["interval"][1] for r in rows]).drop(
            columns="interval"
        )

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [n, f"{c.queries:,}", f"{c.base:.4f}", f"{c.candidate:.4f}", str(c), f"{c.wins:,}", f"{c.losses:,}"]
            for n, c in [*self.directions.items(), *self.slices.items()]
        ]
        return ["where", "queries", "base", "candidate", f"difference of {self.gate.metric}", "wins", "losses"], rows

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        return f"{self.verdict.upper()}: {self.reason}\n\n{plain_table(*self._rows())}"

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        return html_table(*self._rows(), caption=f"{self.verdict.upper()}: {self.reason}")


def compare_vectors(
    base: Vectors,
    candidate: Vectors,
    *,
    gate: "Gate | Mapping[str, Any] | None" = None,
    ks: Sequence[int] = (1, 5, 10),
    pairs: Sequence[tuple[str, str]] | None = None,
    within: bool = False,
    qrels: Qrels | None = None,
    slices: Slices | None = None,
    extra: Mapping[str, tuple[Vectors, Vectors]] | None = None,
    confusable: Confusable | None = None,
    trained: "Mapping[str, np.ndarray | set[int]] | None" = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two models' vectors of one corpus, query by query.

    slices: named row ids of the corpus; extra: corpora of their own by slice name, e.g. general -> (base's, candidate's);
    confusable: adds the slice "confusable" and the pair accuracy; trained: the candidate's training labels, refused when
    they meet the corpus (`overlap.trained_rows`). Raises DataError, RecipeError.
    """
    _same_rows(base, candidate, "the data")
    refuse_trained(candidate, trained, "the candidate")
    made = Gate.read(gate)
    ks = sorted({*ks, *([int(made.metric.split("@")[1])] if made and made.metric.partition("@")[2].isdigit() else [])})
    run = {"ks": ks, "pairs": pairs, "within": within, "qrels": qrels, "per_query": True}
    old, new = evaluate_vectors(base, **run), evaluate_vectors(candidate, **run)  # type: ignore[arg-type]
    if not old.directions:
        raise DataError("no query of any direction has a relevant candidate; are ids or groups missing?")
    across = [n for n in old.directions if len(set(n.split("->"))) == 2] or list(old.directions)
    sets = {**(slices or {}), **({"confusable": confusable.rows} if confusable else {})}
    made = made or default_gate(across, [*sets, *(extra or {})])
    metrics = list(next(iter(old.directions.values())).metrics)
    if made.metric not in metrics:
        raise RecipeError(f"gate.metric: no metric {made.metric!r}; there are: {', '.join(metrics)}")
    how = {"level": level, "resamples": resamples, "seed": seed}
    table = {n: changes([(old.directions[n], new.directions[n], None)], metrics, **how) for n in old.directions}
    if len(across) > 1:
        table[MEAN] = changes([(old.directions[n], new.directions[n], None) for n in across], metrics, **how)
    if made.direction not in table:
        raise RecipeError(f"gate.direction: no {made.direction!r}; there are: {', '.join(table)}")
    judged = across if made.direction == MEAN else [made.direction]
    found = {}
    for name, rows in sets.items():
        parts = [(old.directions[n], new.directions[n], member(old.directions[n], rows)) for n in judged]
        parts = [p for p in parts if p[2] is not None and p[2].any()]
        if parts:
            found[name] = changes(parts, [made.metric], **how)[made.metric]
    for name, (left, right) in (extra or {}).items():
        found[name] = _extra(name, left, right, made, run, how)
    if confusable:
        found[TWINS] = _twin_change(confusable, base, candidate, old, how)
    return _comparison(made, table, found, old, new)


def _comparison(
    gate: Gate, table: dict[str, dict[str, Change]], slices: dict[str, Change], old: Result, new: Result
) -> Comparison:
    directions = {n: c[gate.metric] for n, c in table.items()}
    known = {**directions, **slices}
    for guard in gate.guards:
        if guard not in known:
            raise RecipeError(f"gate.guards.{guard}: neither a slice nor a direction here; there are: {', '.join(known)}")
    verdict, reason = decide(gate, directions[gate.direction], {g: known[g] for g in gate.guards})
    worst = dict(sorted(slices.items(), key=lambda x: (x[1].difference, x[0])))
    return Comparison(verdict, reason, gate, directions, worst, table, old, new)


def changes(
    parts: Sequence[tuple[Direction, Direction, "np.ndarray | None"]], metrics: list[str], **how: Any
) -> dict[str, Change]:
    """Change of each metric, as the mean over parts (base, candidate, mask of queries or None) of the parts' means."""
    pieces, values = [], []
    for old, new, mask in parts:
        keep = np.ones(old.queries, bool) if mask is None else mask
        assert old.values is not None and new.values is not None and old.clusters is not None
        a, b = (np.stack([d.values[m][keep] for m in metrics], 1) for d in (old, new))  # type: ignore[index]
        values.append((a, b))
        pieces.append((b - a, old.clusters[keep]))
    low, high = intervals(pieces, **how)
    clusters = len(np.unique(np.concatenate([c for _, c in pieces])))
    out = {}
    for m, name in enumerate(metrics):
        means = [float(np.mean([v[side][:, m].mean() for v in values])) for side in (0, 1)]
        # sums in another order differ in the last bit: that is no win
        deltas = np.concatenate([d[:, m] for d, _ in pieces])
        wins, losses = int((deltas > 1e-12).sum()), int((deltas < -1e-12).sum())
        difference = float(np.mean([d[:, m].mean() for d, _ in pieces]))
        interval = (float(low[m]), float(high[m]))
        out[name] = Change(means[0], means[1], difference, interval, wins, losses, len(deltas), clusters)
    return out


def _same_rows(base: Vectors, candidate: Vectors, what: str) -> None:
    if set(base) != set(candidate):
        raise DataError(
            f"{what}: the base gives {', '.join(base)} and the candidate {', '.join(candidate)}; compare what both have"
        )
    for name in base:
        if set(base[name].ids) != set(candidate[name].ids):
            only = min(set(base[name].ids) ^ set(candidate[name].ids))
            raise DataError(f"{what}: {name}: row {only!r} has a vector of one model only; embed the same data with both")


def _extra(name: str, left: Vectors, right: Vectors, gate: Gate, run: dict[str, Any], how: dict[str, Any]) -> Change:
    """The gate's metric on a corpus of its own, over its directions between modalities."""
    _same_rows(left, right, f"slice {name!r}")
    old, new = (evaluate_vectors(v, **{**run, "pairs": None, "qrels": None}) for v in (left, right))
    wanted = (
        [gate.direction] if gate.direction in old.directions else [n for n in old.directions if len(set(n.split("->"))) == 2]
    )
    if not wanted:
        raise DataError(f"slice {name!r}: no query of it has a relevant candidate")
    return changes([(old.directions[n], new.directions[n], None) for n in wanted], [gate.metric], **how)[gate.metric]


def _twin_change(frozen: Confusable, base: Vectors, candidate: Vectors, old: Result, how: dict[str, Any]) -> Change:
    """Accuracy over the frozen pairs as a Change."""
    (a, queries), (b, _) = accuracy(frozen, base), accuracy(frozen, candidate)
    from mmtune.evaluation.clusters import row_clusters

    linked = row_clusters(base)
    at = np.array([linked[q] for q in queries])
    d = (b - a)[:, None]
    low, high = intervals([(d, at)], **how)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    interval = (float(low[0]), float(high[0]))
    return Change(float(a.mean()), float(b.mean()), float(d.mean()), interval, wins, losses, len(d), len(np.unique(at)))
