"""The result of `mmtune predict`: one prediction for each file or row, and the files that could not be decoded."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.prediction.alarm_threshold import AlarmThreshold

if TYPE_CHECKING:
    import pandas

SHOWN = 20
"""Number of predictions in a printed table."""


@dataclass(frozen=True)
class LocatedWindow:
    """The prediction for a part of a recording.

    start, seconds: where the window begins, and its length, in seconds
    predicted_class, score: as in `Prediction`. The threshold is not applied: it is for inputs as long as the references.
    """

    start: float
    seconds: float
    predicted_class: str | None
    score: float

    def to_dict(self) -> JsonObject:
        return {"start": round(self.start, 3), "seconds": self.seconds, "class": self.predicted_class, "score": self.score}


@dataclass(frozen=True)
class Prediction:
    """The prediction for one file or row.

    file: path as it was given, or the id of a row
    modality: its modality
    predicted_class: class; None for anomaly detection
    score: zero_shot: probability of the class; knn: its share of the neighbours' votes; anomaly: the anomaly score
    nearest: ids of the nearest references, or for zero_shot the nearest classes, nearest first
    cosines: their cosines
    anomaly_score: distance (1 - cosine) to the nearest references; None for zero_shot
    alarm: whether the anomaly score is above the threshold; None without a threshold
    windows: predictions for windows of the recording, if they were asked for and it is longer than one window
    """

    file: str
    modality: str
    predicted_class: str | None
    score: float
    nearest: list[str]
    cosines: list[float]
    anomaly_score: float | None = None
    alarm: bool | None = None
    windows: tuple[LocatedWindow, ...] = ()

    @property
    def strengths(self) -> list[float]:
        """How much each window stands out: its score, but 0 for windows of the most frequent class where there are several classes.

        A recording is background for the most part: a window that is certainly background is not what is looked for.
        """
        count = Counter(w.predicted_class for w in self.windows)
        usual = count.most_common(1)[0][0] if len(count) > 1 else None
        return [0.0 if usual is not None and w.predicted_class == usual else w.score for w in self.windows]

    @property
    def peak(self) -> LocatedWindow | None:
        """The window that stands out most."""
        strengths = self.strengths
        return self.windows[strengths.index(max(strengths))] if strengths else None

    def to_dict(self) -> JsonObject:
        document: JsonObject = {
            "file": self.file,
            "modality": self.modality,
            "class": self.predicted_class,
            "score": self.score,
            "nearest": self.nearest,
            "cosines": self.cosines,
        }
        if self.anomaly_score is not None:
            document["anomaly_score"] = self.anomaly_score
        if self.alarm is not None:
            document["alarm"] = self.alarm
        if self.windows:
            document["windows"] = [w.to_dict() for w in self.windows]
        return document


@dataclass(frozen=True)
class Undecodable:
    """A file or row that could not be decoded, and why."""

    file: str
    error: str

    def to_dict(self) -> JsonObject:
        return {"file": self.file, "error": self.error}


@dataclass
class Predictions:
    """Predictions in the order of the inputs.

    errors: inputs that could not be decoded, which have no prediction
    ignored: number of files in folders that are of no modality of the model
    thresholds: {modality: threshold}
    """

    task: str
    fingerprint: str
    predictions: list[Prediction]
    errors: list[Undecodable] = field(default_factory=list)
    ignored: int = 0
    thresholds: dict[str, AlarmThreshold] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune predict --json`."""
        return {
            "task": self.task,
            "fingerprint": self.fingerprint,
            "predictions": [p.to_dict() for p in self.predictions],
            "errors": [e.to_dict() for e in self.errors],
            "counts": {
                "inputs": len(self.predictions) + len(self.errors),
                "predicted": len(self.predictions),
                **({"alarms": self.alarms} if self.thresholds else {}),
                "errors": len(self.errors),
                "ignored": self.ignored,
            },
            "thresholds": {m: t.to_dict() for m, t in self.thresholds.items()},
        }

    @property
    def alarms(self) -> int:
        """Number of predictions whose score is above the threshold; 0 without a threshold."""
        return sum(bool(p.alarm) for p in self.predictions)

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per prediction."""
        import pandas

        return pandas.DataFrame([p.to_dict() for p in self.predictions])

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        located = any(p.windows for p in self.predictions)
        rows = [
            [
                p.file,
                "" if p.predicted_class is None else p.predicted_class,
                f"{p.score:.4g}" if self.task == "anomaly" else f"{p.score:.4f}",
                "" if p.alarm is None else ("ALARM" if p.alarm else "ok"),
                ", ".join(p.nearest[:3]),
                *([f"{p.peak.start:.2f} s" if p.peak else ""] if located else []),
            ]
            for p in sorted(self.predictions, key=lambda p: not p.alarm)[:SHOWN]  # alarms first
        ]
        lines = [plain_table(["file", "class", "score", "alarm", "nearest", *["highest at"][:located]], rows)] if rows else []
        if len(self.predictions) > SHOWN:
            lines.append(f"({len(self.predictions) - SHOWN:,} more; --json has all)")
        lines += [f"{m}: {t}" for m, t in self.thresholds.items()]
        lines += [f"{e.file}: cannot be decoded: {e.error}" for e in self.errors]
        alarms = f", {self.alarms:,} of them alarms" if self.thresholds else ""
        lines.append(f"{len(self.predictions):,} predicted{alarms}, {len(self.errors):,} cannot be decoded")
        if self.ignored:
            lines.append(f"{self.ignored:,} files of the folder are of no modality that this model predicts")
        return "\n".join(lines)
