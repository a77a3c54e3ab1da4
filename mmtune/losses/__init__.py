"""Loss functions on tensors, without state. A recipe's objective is a weighted sum of them.

A loss belongs to one of four families. Its decorator names the family, and the family decides which argument the loss gets:

- `@contrastive_loss`: a `ContrastiveBlock`, which holds some queries, all candidates, and masks of positives and negatives.
  It returns one loss per query, shape [R]. The caller may evaluate it on the full logit matrix, in tiles, or with a queue of
  earlier embeddings; the loss function is the same in each case.
- `@scored_pairs_loss`: `ScoredPairs`, the cosine of each row's own pair and a score from a numeric column. It returns a scalar.
- `@distillation_loss`: a `DistillationBlock`, the student's similarities and the teacher's scores. It returns a scalar.
- `@class_label_loss`: a class (`torch.nn.Module`) whose `forward` gets embeddings [N, D] and class numbers [N], and returns a
  scalar. It may have parameters, such as class proxies. Every loss of pytorch-metric-learning is one: `pml:NAME`.

Keyword-only parameters are the options that a recipe can set. To use your own loss in a recipe, name it as
`package.module:function` (an installed package, or a module in the working directory). Or give it a short name with
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
from mmtune.losses.families import LossFunction, class_label_loss, contrastive_loss, distillation_loss, scored_pairs_loss
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
"""{loss name in a recipe: the function, or "package.module:function" where it is defined}."""


def register(name: str, target: str | LossFunction) -> None:
    """Make a loss available to recipes in this process under `name`.

    target: the decorated function, or "package.module:function".
    """
    plugins.register(TABLE, name, target, "loss")


__all__ = [
    "TABLE",
    "ContrastiveBlock",
    "LossFunction",
    "ScoredPairs",
    "DistillationBlock",
    "class_label_loss",
    "contrastive_loss",
    "distillation_loss",
    "register",
    "scored_pairs_loss",
]
