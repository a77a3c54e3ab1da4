"""Log of a run's metrics by step, written to RUN/metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mmtune.runtime.files import append_jsonl, read_jsonl_log, write_jsonl

VALIDATION = "val "
"""Prefix of the names of validation metrics in the log."""


class Metrics(Protocol):
    """The values of one line of the log."""

    def to_dict(self) -> dict[str, float]:
        """{name in the log: value}."""
        ...


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step.

    terms: {name of the loss term: value}
    pairs: query rows in the batch
    seconds: duration of the step, including waiting for data
    wait_seconds: the part of `seconds` spent waiting for data
    threads: threads of the step, if their number may change during the run
    """

    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    lr: float
    pairs: int
    seconds: float
    wait_seconds: float
    threads: int | None = None

    def to_dict(self) -> dict[str, float]:
        """{name in the log: value}."""
        speed = {"pairs_per_second": self.pairs / self.seconds, "wait": self.wait_seconds / self.seconds}
        threads = {} if self.threads is None else {"threads": float(self.threads)}
        return {"loss": self.loss, **self.terms, "grad_norm": self.grad_norm, "lr": self.lr, **speed, **threads}


@dataclass(frozen=True)
class ValidationMetrics:
    """Scores of one validation, by name. The score named "metric" selects the best checkpoints."""

    scores: Mapping[str, float]

    def to_dict(self) -> dict[str, float]:
        """{name in the log: value}."""
        return {f"{VALIDATION}{name}": value for name, value in self.scores.items()}

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4f}" for name, value in self.scores.items() if name != "metric")


class MetricsLog:
    """Context manager that logs metrics as JSON lines {"step", "epoch", ...}.

    step: the step from which the run starts or resumes; lines of later steps are deleted, and all lines if it is 0
    validated: whether the model of `step` has been validated. If not, the run does it again, e.g. because it was killed between the
        validation and the next checkpoint, and a line of that validation is deleted
    write: False on all ranks but 0, where nothing is written
    """

    def __init__(self, directory: Path, step: int, validated: bool = True, write: bool = True):
        self.path, self.directory, self.step, self.write = directory / "metrics.jsonl", directory, step, write
        self.validated = validated

    def __enter__(self) -> "MetricsLog":
        if not self.write:
            return self
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            write_jsonl(self.path, [r for r in read_jsonl_log(self.path) if self._is_known(r)])
        return self

    def _is_known(self, line: Mapping[str, object]) -> bool:
        """Whether a line is of a step or validation before the start."""
        step = line["step"]
        assert isinstance(step, int)
        if step == self.step and not self.validated and any(k.startswith(VALIDATION) for k in line):
            return False
        return 0 < self.step >= step

    def log(self, step: int, epoch: int, metrics: Metrics) -> None:
        """Write one line."""
        if self.write:
            append_jsonl(self.path, {"step": step, "epoch": epoch, **metrics.to_dict()})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to close: every line is written at once."""
