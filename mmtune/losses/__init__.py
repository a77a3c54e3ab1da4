"""Losses: pure functions on tensors, one idea a file. The objective of a recipe is a weighted sum of them.

A loss belongs to one of three families, which its decorator says; the family decides what the loss is called with:

- `@contrastive_loss`: a `ContrastiveBlock`, some queries against all candidates with their positives and negatives; returns
  one loss a query [R]. Such a loss runs dense, tiled, or with a queue of earlier vectors without knowing it.
- `@scored_pairs_loss`: `ScoredPairs`, the cosines of the batch's own pairs beside a numeric column; returns a scalar.
- `@distillation_loss`: a `DistillationBlock`, similarities of the student beside scores of its teacher; returns a scalar.

Keyword-only parameters are the options that a recipe may set. A loss of one's own is named in a recipe as
`package.module:function` (found among the installed packages and in the working directory), or by a name after
`register(name, function)`:

    from mmtune.losses import ContrastiveBlock, contrastive_loss

    @contrastive_loss
    def hinge(block: ContrastiveBlock, *, margin: float = 0.2) -> Tensor:
        hardest = block.similarity.masked_fill(~block.negatives, -1).amax(1)
        weakest = block.similarity.masked_fill(~block.positives, 1).amin(1)
        return torch.relu(margin + hardest - weakest)
"""

from mmtune.losses.contrastive import ContrastiveBlock
from mmtune.losses.distillation import DistillationBlock
from mmtune.losses.families import LossFunction, contrastive_loss, distillation_loss, scored_pairs_loss
from mmtune.losses.graded import ScoredPairs
from mmtune.runtime import plugins

TABLE: dict[str, str | LossFunction] = {
    "info_nce": "mmtune.losses.info_nce:info_nce",
    "sigmoid": "mmtune.losses.sigmoid:sigmoid",
    "triplet": "mmtune.losses.triplet:triplet",
    "mse": "mmtune.losses.graded:mse",
    "cosine": "mmtune.losses.graded:cosine",
    "cosent": "mmtune.losses.graded:cosent",
    "kl": "mmtune.losses.distillation:kl",
    "score_mse": "mmtune.losses.distillation:score_mse",
    "margin_mse": "mmtune.losses.distillation:margin_mse",
    "feature": "mmtune.losses.distillation:feature",
}
"""Loss name in a recipe -> the function, or where it is defined."""


def register(name: str, target: str | LossFunction) -> None:
    """Make a loss known by `name` in recipes of this process. target: the decorated function, or "package.module:function"."""
    plugins.register(TABLE, name, target, "loss")


__all__ = [
    "TABLE",
    "ContrastiveBlock",
    "LossFunction",
    "ScoredPairs",
    "DistillationBlock",
    "contrastive_loss",
    "distillation_loss",
    "register",
    "scored_pairs_loss",
]
