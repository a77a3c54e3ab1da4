"""RUN/metrics.jsonl and RUN/interpolation.json -> learning curves, whatever kind of run wrote them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmtune.reporting.interpolation import between as sweep
from mmtune.reporting.plots import Chart, chart, number, thin

VAL, GENERAL = "val ", "val general "
MEANS = ("val metric", "val general metric")
QUIET = ("step", "epoch", "loss", "lr", "grad_norm", "pairs_per_second", "wait")
TONES = 8


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


def learning(log: list[dict[str, Any]], between: Mapping[str, Any] | None = None) -> list[Chart]:
    """Charts of what the log holds: the loss and its parts, validation on the domain and on the general slice, learning rate,
    gradient; and of `between`, what a sweep of the weights between base and tuned wrote."""
    out = []
    x, y = _column(log, "loss")
    if len(x) > 1:
        at, calm = thin(x), smooth(y, max(1.0, len(y) / 30))
        told = f"Training loss from {number(float(calm[0]))} to {number(float(calm[-1]))} over {int(x[-1]):,} steps."
        series = [("each step", "faint", x[at], y[at]), ("smoothed", "after", x[at], calm[at])]
        out.append(chart("Training loss", told, series, "step"))
    parts = _parts(log)
    if len(parts) > 1:
        told = "; ".join(f"{n} from {number(float(y[0]))} to {number(float(y[-1]))}" for n, _, y in parts)
        out.append(chart("Parts of the loss, smoothed", told, _tones(parts), "step"))
    general = [k for k in _names(log) if k.startswith(GENERAL)]
    for title, prefix, names in (
        ("Validation after each epoch", VAL, [k for k in _names(log) if k.startswith(VAL) and k not in general]),
        ("General skill after each epoch", GENERAL, general),
    ):
        found = [(n.removeprefix(prefix), *_column(log, n)) for n in names if n not in MEANS]
        if found := [f for f in found if len(f[1])]:
            told = "; ".join(f"{n} ends at {number(float(y[-1]))}, best {number(float(y.max()))}" for n, _, y in found)
            out.append(chart(title, told, _tones(found), "step", dots=True))
    if between:
        out += sweep(between)
    for name, title in (("lr", "Learning rate"), ("grad_norm", "Gradient norm")):
        x, y = _column(log, name)
        if len(x) > 1:
            at = thin(x)
            told = f"{title} between {number(float(y.min()))} and {number(float(y.max()))}."
            out.append(chart(title, told, [(title.lower(), "before", x[at], y[at])], "step", zero=True, legend=False))
    return out


def _names(log: list[dict[str, Any]]) -> list[str]:
    return sorted({k for r in log for k in r})


def _tones(found: list[tuple[str, np.ndarray, np.ndarray]]) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    return [(n, f"tone{i % TONES}", x, y) for i, (n, x, y) in enumerate(found)]


def _parts(log: list[dict[str, Any]]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """What the objective logged beside the loss, smoothed and thinned."""
    out = []
    for name in _names(log):
        x, y = _column(log, name)
        if name not in QUIET and not name.startswith(VAL) and len(x) > 1:
            at = thin(x)
            out.append((name, x[at], smooth(y, max(1.0, len(y) / 30))[at]))
    return out
