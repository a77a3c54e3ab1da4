"""Gradient accumulation: one optimizer step on several batches, each with a loss of its own.

The loss of the step is the mean of the batches' losses, weighted by their rows. A loss that is a mean over rows (mse, cosine, feature)
then has the gradient of one large batch. A contrastive loss does not: a query's candidates are those of its own batch. Gradient
caching (`gradient_cache`, recipe key `train.micro_batch_size`) gives the gradient of the whole batch for every loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmtune.contracts import Batch


@dataclass(frozen=True)
class BatchOfStep:
    """The part that one batch has in an optimizer step.

    weight: weight of its loss; the weights of the batches of a step sum to 1
    is_first, is_last: whether it is the first or the last batch of the step
    """

    weight: float = 1.0
    is_first: bool = True
    is_last: bool = True


def batches_of_steps(sizes: Sequence[int], batches_per_step: int) -> list[BatchOfStep]:
    """Divide the batches of an epoch among optimizer steps. The last step of an epoch may have fewer batches.

    sizes: number of rows of each batch
    """
    parts = []
    for start in range(0, len(sizes), batches_per_step):
        rows = sizes[start : start + batches_per_step]
        parts += [BatchOfStep(n / sum(rows), i == 0, i == len(rows) - 1) for i, n in enumerate(rows)]
    return parts


@dataclass
class StepSums:
    """What the batches of one optimizer step add up to.

    batches: number of batches
    pairs: query rows
    loss: weighted sum of the losses
    terms: {name of the loss term: weighted sum of its values, over the batches that have it}
    ids: row ids of the batches
    """

    batches: int = 0
    pairs: int = 0
    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    def add(self, batch: Batch, weight: float, loss: float, terms: dict[str, float]) -> None:
        """Add one batch with the value of its loss and of its terms."""
        self.batches += 1
        self.pairs += int(batch.is_query.sum())
        self.loss += weight * loss
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + weight * value
        self.ids += batch.ids
