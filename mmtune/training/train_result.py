"""What `mmtune.train` returns."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from mmtune.contracts import JsonObject
from mmtune.runtime.results import ResultFields

if TYPE_CHECKING:
    from mmtune.evaluation.result import Result


class BestCheckpoint(TypedDict):
    """A kept checkpoint and its validation metric."""

    metric: float
    checkpoint: str


@dataclass
class TrainResult(ResultFields):
    """A finished training run.

    artifact: directory of the tuned model; fingerprint: its; trainable: {modality: counts of parameters}; coefficient: of the
    interpolation with the base, None without one; metrics: evaluation on data.val as plain data, {} without it;
    pairs_per_second, wait (share of the time spent waiting for data), pairs, seconds, steps: of the training loop;
    best: checkpoints by validation metric, the best first; result: the metrics as a typed Result, None without data.val and
    in all processes but the first.
    """

    not_in_document = ("result",)

    artifact: str
    fingerprint: str
    trainable: JsonObject
    coefficient: float | None
    metrics: JsonObject
    pairs_per_second: float
    wait: float
    pairs: int
    seconds: float
    steps: int
    best: list[BestCheckpoint]
    result: "Result | None" = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = [
            f"{self.artifact}  {self.fingerprint}",
            f"{self.pairs_per_second:.1f} pairs/s over {self.pairs} pairs, {self.wait:.0%} of the time waiting for data",
        ]
        if self.coefficient is not None:
            lines.append(f"{self.coefficient:g} of the way from base to tuned; `mmtune report` draws the curve")
        return "\n".join([*lines, str(self.result)] if self.result else lines)
