"""The result of `mmtune bench quality`: scores by set, method and number of examples, as JSON and as a Markdown table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from mmtune.comparison.paired_difference import SeedsDifference
from mmtune.contracts import JsonObject
from mmtune.sweeps.repeat_seeds import Spread, spread_of

ALL_ROWS = "all"


@dataclass(frozen=True)
class Cell:
    """One run of one method.

    data: name of the set
    shots: training rows of each group, None for all
    method: name of the method
    seed: the seed
    scores: {"direction metric": value} on val
    seconds, cpu_seconds: wall and processor time of fitting or training, without scoring. The features of towers that are not tuned are
        computed once for all methods, before; a tower that is tuned runs within this time
    rows: training rows
    pairs_seen: pairs in all training steps; 0 without training
    """

    data: str
    shots: int | None
    method: str
    seed: int
    scores: dict[str, float]
    seconds: float
    cpu_seconds: float
    rows: int
    pairs_seen: int

    def to_dict(self) -> JsonObject:
        return asdict(self)


@dataclass(frozen=True)
class Line:
    """All seeds of one method on one set. spread: {"direction metric": mean, sd and 95% t-interval over the seeds}."""

    data: str
    shots: int | None
    method: str
    seeds: list[int]
    spread: dict[str, Spread]
    seconds: float
    cpu_seconds: float
    rows: int
    pairs_seen: int


@dataclass(frozen=True)
class MethodDifference:
    """One score of mmtune minus that of another method, paired by query and seed, with its interval over queries and seeds.

    method: the other method
    score: "direction metric"
    """

    data: str
    shots: int | None
    method: str
    score: str
    difference: SeedsDifference

    def to_dict(self) -> JsonObject:
        kept = {k: v for k, v in self.difference.to_dict().items() if k not in ("base", "candidate")}
        return {"data": self.data, "shots": self.shots, "method": self.method, "score": self.score, **kept}


@dataclass
class QualityResult:
    """The scores of a benchmark.

    cells: the single runs
    notes: what a reader must know to compare the methods
    skipped: {method or cell: why it was not run}
    differences: of mmtune to the other methods; those of runs that an earlier version made are missing
    """

    cells: list[Cell]
    skipped: dict[str, str]
    differences: list[MethodDifference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[Line]:
        """The cells by set, number of examples and method, in the order in which they were run."""
        grouped: dict[tuple[str, int | None, str], list[Cell]] = {}
        for cell in self.cells:
            grouped.setdefault((cell.data, cell.shots, cell.method), []).append(cell)
        return [_line(key, cells) for key, cells in grouped.items()]

    def to_dict(self) -> JsonObject:
        """The document of `mmtune bench quality --json`."""
        return {
            "lines": [asdict(line) for line in self.lines],
            "cells": [c.to_dict() for c in self.cells],
            "differences": [d.to_dict() for d in self.differences],
            "skipped": self.skipped,
            "notes": self.notes,
        }

    def markdown(self) -> str:
        """Markdown tables, one for each set: a row for each method, with mean ± standard deviation and the 95% interval."""
        parts = []
        for data in dict.fromkeys(c.data for c in self.cells):
            lines = [line for line in self.lines if line.data == data]
            parts.append(f"### {data}\n\n{_table(lines)}")
            if of := [d for d in self.differences if d.data == data]:
                parts.append(
                    f"mmtune minus the other method, paired by query, 95% over queries (and seeds, of methods that have several):\n\n{_differences(of)}"
                )
        notes = [f"- {note}" for note in self.notes]
        notes += [f"- not run: {name}: {why}" for name, why in self.skipped.items()]
        return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"

    def __str__(self) -> str:
        return self.markdown().rstrip("\n")


def _line(key: tuple[str, int | None, str], cells: Sequence[Cell]) -> Line:
    names = list(dict.fromkeys(name for c in cells for name in c.scores))
    spread = {n: spread_of([c.scores[n] for c in cells if n in c.scores]) for n in names}
    data, shots, method = key
    seconds, cpu = (sum(v) / len(cells) for v in ([c.seconds for c in cells], [c.cpu_seconds for c in cells]))
    return Line(
        data,
        shots,
        method,
        [c.seed for c in cells],
        spread,
        round(seconds, 2),
        round(cpu, 2),
        cells[0].rows,
        cells[0].pairs_seen,
    )


def _table(lines: Sequence[Line]) -> str:
    metrics = list(dict.fromkeys(name for line in lines for name in line.spread))
    head = ["examples a group", "method", "seeds", *metrics, "pairs seen", "s", "processor s"]
    rows = [
        [
            ALL_ROWS if line.shots is None else str(line.shots),
            line.method,
            str(len(line.seeds)),
            *(_value(line.spread.get(m)) for m in metrics),
            f"{line.pairs_seen:,}",
            f"{line.seconds:,.1f}",
            f"{line.cpu_seconds:,.1f}",
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows])


def _differences(of: Sequence[MethodDifference]) -> str:
    scores = list(dict.fromkeys(d.score for d in of))
    by_method: dict[tuple[int | None, str], dict[str, SeedsDifference]] = {}
    for d in of:
        by_method.setdefault((d.shots, d.method), {})[d.score] = d.difference
    rows = [
        [
            ALL_ROWS if shots is None else str(shots),
            method,
            *(f"{v[s].difference:+.3f} {v[s].bounds('+.3f')}" if s in v else "" for s in scores),
        ]
        for (shots, method), v in by_method.items()
    ]
    head = ["examples a group", "mmtune minus", *scores]
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows])


def _value(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread["sd"] is None:
        return f"{spread['mean']:.3f}"
    return f"{spread['mean']:.3f} ± {spread['sd']:.3f} [{spread['low']:.3f}, {spread['high']:.3f}]"
