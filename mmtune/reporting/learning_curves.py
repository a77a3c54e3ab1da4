"""Charts of RUN/metrics.jsonl and RUN/interpolation.json, for runs with any objective."""

from collections.abc import Sequence

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.reporting.interpolation import interpolation_charts
from mmtune.reporting.plots import Chart, Series, evenly_spaced, line_chart, short_number

VALIDATION = "val "
RETENTION = ("val retention ", "val general ")
"""Prefixes of metrics on the retention data. Logs of older versions have the second one."""
MEANS = ("val metric", "val retention metric", "val general metric")
"""Names of means over other logged metrics; they get no curve of their own."""
NOT_LOSSES = ("step", "epoch", "loss", "lr", "grad_norm", "pairs_per_second", "wait")
"""Values of a log line that are not terms of the loss."""
TONES = 8  # number of colours; further curves reuse them


def exponential_mean(y: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential moving average with a half-life in points, corrected for the bias at the start."""
    keep = 0.5 ** (1 / max(half_life, 1e-9))
    total = weight = 0.0
    out = np.empty(len(y))
    for i, value in enumerate(y):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def learning_curves(log: Sequence[JsonObject], interpolation: JsonObject | None = None) -> list[Chart]:
    """Return the charts of a run's log, and of its interpolation if it has one.

    They show the loss and its terms, validation scores on the domain and on the retention data, the learning rate and the
    gradient norm.
    """
    out = []
    x, y = _column(log, "loss")
    if len(x) > 1:
        at, smooth = evenly_spaced(len(x)), exponential_mean(y, max(1.0, len(y) / 30))
        caption = f"Training loss from {short_number(float(smooth[0]))} to {short_number(float(smooth[-1]))} over {int(x[-1]):,} steps."
        series = [Series("each step", "faint", x[at], y[at]), Series("smoothed", "after", x[at], smooth[at])]
        out.append(line_chart("Training loss", caption, series, "step"))
    parts = _parts_of_the_loss(log)
    if len(parts) > 1:
        caption = "; ".join(f"{s.name} from {short_number(float(s.y[0]))} to {short_number(float(s.y[-1]))}" for s in parts)
        out.append(line_chart("Terms of the loss, smoothed", caption, parts, "step"))
    names = [n for n in _names(log) if n not in MEANS]
    retention = [n for n in names if n.startswith(RETENTION)]
    domain = [n for n in names if n.startswith(VALIDATION) and n not in retention]
    out += _validation("Validation after each epoch", log, {n: n.removeprefix(VALIDATION) for n in domain})
    out += _validation(
        "Retention after each epoch", log, {n: n.removeprefix(RETENTION[0]).removeprefix(RETENTION[1]) for n in retention}
    )
    if interpolation:
        out += interpolation_charts(interpolation)
    for name, title in (("lr", "Learning rate"), ("grad_norm", "Gradient norm")):
        x, y = _column(log, name)
        if len(x) > 1:
            at = evenly_spaced(len(x))
            caption = f"{title} between {short_number(float(y.min()))} and {short_number(float(y.max()))}."
            series = [Series(title.lower(), "before", x[at], y[at])]
            out.append(line_chart(title, caption, series, "step", from_zero=True, legend=False))
    return out


def _validation(title: str, log: Sequence[JsonObject], labels: dict[str, str]) -> list[Chart]:
    """Return a chart of the log's columns `labels` ({name: label}), or no chart if they are empty."""
    columns = [(label, *_column(log, name)) for name, label in labels.items()]
    series = [Series(label, f"tone{i % TONES}", x, y) for i, (label, x, y) in enumerate(c for c in columns if len(c[1]))]
    if not series:
        return []
    caption = "; ".join(
        f"{s.name} ends at {short_number(float(s.y[-1]))}, best {short_number(float(s.y.min() if 'drop' in s.name else s.y.max()))}"
        for s in series
    )
    return [line_chart(title, caption, series, "step", dots=True)]


def _column(log: Sequence[JsonObject], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of the lines with a finite number under `name`."""
    rows = [(r["step"], r[name]) for r in log if isinstance(r.get(name), int | float) and np.isfinite(r[name])]
    return np.array([s for s, _ in rows], float), np.array([v for _, v in rows], float)


def _names(log: Sequence[JsonObject]) -> list[str]:
    return sorted({k for r in log for k in r})


def _parts_of_the_loss(log: Sequence[JsonObject]) -> list[Series]:
    """The terms of the loss that were logged, smoothed, with at most MAX_POINTS points each."""
    out: list[Series] = []
    for name in _names(log):
        x, y = _column(log, name)
        if name not in NOT_LOSSES and not name.startswith(VALIDATION) and len(x) > 1:
            at, smooth = evenly_spaced(len(x)), exponential_mean(y, max(1.0, len(y) / 30))
            out.append(Series(name, f"tone{len(out) % TONES}", x[at], smooth[at]))
    return out
