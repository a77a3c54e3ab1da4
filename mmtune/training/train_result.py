"""The result of `mmtune.train`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from mmtune.contracts import JsonObject
from mmtune.runtime.results import ResultFields

if TYPE_CHECKING:
    from mmtune.evaluation.rerank_evaluation import RerankResult
    from mmtune.evaluation.result import Result


class BestCheckpoint(TypedDict):
    """A checkpoint that was kept, and its validation metric."""

    metric: float
    checkpoint: str


@dataclass
class TrainResult(ResultFields):
    """A finished training run.

    artifact: directory of the tuned model
    fingerprint: fingerprint of the tuned model
    trainable: {modality: counts of trainable and of all parameters}
    coefficient: interpolation coefficient between base (0) and tuned model (1), or None without interpolation
    metrics: scores on data.val as plain data; {} if there is no data.val
    pairs_per_second: mean speed of the training loop
    wait: share of the training time that was spent waiting for data
    pairs, seconds, steps: query rows seen, duration, and optimizer steps of the training loop
    best: checkpoints with their validation metric, best first
    result: the same scores as a typed Result (of a cross-encoder: a RerankResult); None without data.val, and on all ranks but 0
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
    result: "Result | RerankResult | None" = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = [
            f"{self.artifact}  {self.fingerprint}",
            f"{self.pairs_per_second:.1f} pairs/s over {self.pairs} pairs, {self.wait:.0%} of the time waiting for data",
        ]
        if self.best:
            lines += self._chosen(int(self.best[0]["checkpoint"].removeprefix("step-")), self.best[0]["metric"])
        if self.coefficient == 0:
            lines.append("interpolation coefficient 0: the artifact is the base model, nothing of the training is kept")
        elif self.coefficient is not None:
            lines.append(
                f"interpolation coefficient {self.coefficient:g} (0 is the base, 1 the tuned model); `mmtune report` plots the curve"
            )
        return "\n".join([*lines, str(self.result)] if self.result else lines)

    def _chosen(self, step: int, score: float) -> list[str]:
        """Say which checkpoint was chosen, by its selection score (see `RetentionBudget.scores`)."""
        if score < -1:  # past the forgetting budget: -1 minus the upper end of the loss
            return [
                f"no checkpoint kept the forgetting budget: the upper end of the loss on the retention data was {-1 - score:.4f} or more "
                f"(least at step {step} of {self.steps}); set a larger retention.at_most, or give retention data with more clusters, which "
                "narrow its interval"
            ]
        if self.coefficient == 0:
            return []
        return [f"the weights are those of step {step} of {self.steps}, whose validation score was best ({score:.4f})"]
