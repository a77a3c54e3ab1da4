"""The result of a sweep: its trials, what mattered, and the gate's verdict on the best one."""

from dataclasses import dataclass
from typing import TypedDict

from mmtune.contracts import JsonObject
from mmtune.html.render import render
from mmtune.runtime.results import ResultFields


class TrialRow(TypedDict):
    """One trial: number, state (complete, pruned, fail, running), validation metric, values of the searched keys, seconds, and why it failed."""

    number: int
    state: str
    metric: float | None
    values: JsonObject
    seconds: float | None
    error: str


@dataclass
class SweepResult(ResultFields):
    """A sweep.

    metric: name of the validation metric that is maximised
    best: number of the best trial
    best_metric: its metric
    best_values: its values
    artifact: directory of its model
    trials: all trials, in their order
    importances: {key: share of the metric's variance that it explains}, {} for fewer than four complete trials
    comparison: the comparison of the best model with the base on the third split (`mmtune compare`), None without one
    """

    metric: str
    best: int
    best_metric: float
    best_values: JsonObject
    artifact: str
    trials: list[TrialRow]
    importances: dict[str, float]
    comparison: JsonObject | None = None

    @property
    def status(self) -> int:
        """Exit status: that of the gate, or 0."""
        return int(self.comparison["status"]) if self.comparison else 0

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Head and rows of the table of trials, the best first, then the others, failed ones last."""
        keys = list(dict.fromkeys(k for t in self.trials for k in t["values"]))
        order = sorted(
            self.trials, key=lambda t: (t["state"] != "complete", -(t["metric"] if t["metric"] is not None else -1.0))
        )
        rows: list[list[object]] = [
            [t["number"], t["state"], t["metric"], *(_shown(t["values"].get(k)) for k in keys), t["seconds"], t["error"]]
            for t in order
        ]
        return ["trial", "state", self.metric, *keys, "seconds", "error"], rows

    def to_html(self) -> str:
        """A page with the verdict, the table of trials and the importances."""
        head, rows = self.table()
        return render("sweep.html.j2", result=self, head=head, rows=rows)

    def __str__(self) -> str:
        head, rows = self.table()
        cells = [[str(h) for h in head], *([_cell(v) for v in row] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        if self.importances:
            lines.append("what mattered: " + ", ".join(f"{k} {v:.2f}" for k, v in self.importances.items()))
        lines.append(f"best: trial {self.best}, {self.metric} {self.best_metric:.4f}: {self.artifact}")
        if self.comparison:
            lines.append(str(self.comparison["summary"]))
        return "\n".join(lines)


def _shown(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
