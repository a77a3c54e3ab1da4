"""RUN/metrics.jsonl -> learning curves."""

from typing import Any

import numpy as np

from mmtune.report.plots import Chart, chart, number, thin

VAL = "val "
MEAN = "val metric"
QUIET = ("step", "epoch", "loss", "lr", "grad_norm", "pairs_per_second", "wait")


def smooth(y: np.ndarray, half: float) -> np.ndarray:
    """Exponential mean with half-life `half` in points, without the bias of its start."""
    keep = 0.5 ** (1 / max(half, 1e-9))
    total = weight = 0.0
    out = np.empty(len(y))
    for i, value in enumerate(y):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def _column(log: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [(r["step"], r[name]) for r in log if isinstance(r.get(name), int | float) and np.isfinite(r[name])]
    return np.array([s for s, _ in rows], float), np.array([v for _, v in rows], float)


def learning(log: list[dict[str, Any]]) -> list[Chart]:
    """Charts of what the log holds: loss, validation, learning rate, gradient."""
    out = []
    x, y = _column(log, "loss")
    if len(x) > 1:
        at, calm = thin(x), smooth(y, max(1.0, len(y) / 30))
        told = f"Training loss from {number(float(calm[0]))} to {number(float(calm[-1]))} over {int(x[-1]):,} steps."
        series = [("each step", "faint", x[at], y[at]), ("smoothed", "after", x[at], calm[at])]
        out.append(chart("Training loss", told, series, "step"))
    names = sorted({k for r in log for k in r if k.startswith(VAL) and k != MEAN})
    found = [(n.removeprefix(VAL), *_column(log, n)) for n in names]
    found = [f for f in found if len(f[1])]
    if found:
        told = "; ".join(f"{n} ends at {number(float(y[-1]))}, best {number(float(y.max()))}" for n, _, y in found)
        series = [(n, f"tone{i % 4}", x, y) for i, (n, x, y) in enumerate(found)]
        out.append(chart("Validation after each epoch", told, series, "step", dots=True))
    for name, title in (("lr", "Learning rate"), ("grad_norm", "Gradient norm")):
        x, y = _column(log, name)
        if len(x) > 1:
            at = thin(x)
            told = f"{title} between {number(float(y.min()))} and {number(float(y.max()))}."
            out.append(chart(title, told, [(title.lower(), "before", x[at], y[at])], "step", zero=True, legend=False))
    return out
